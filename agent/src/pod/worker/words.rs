//! What the events of a container's start say: the sentences that the kubelet of v1.37 writes, so that who searches for them finds them
//! (pkg/kubelet/images/image_manager.go, pkg/kubelet/kuberuntime/kuberuntime_container.go).

use std::time::Duration;

/// The container is there.
pub(super) const CREATED: &str = "Container created";
/// Its command was executed.
pub(super) const STARTED: &str = "Container started";

/// The image needed no pull.
pub(super) fn present(image: &str) -> String {
    format!("Container image \"{image}\" already present on machine and can be accessed by the pod")
}

/// It needed one, and must not have it.
pub(super) fn not_present(image: &str) -> String {
    format!("Container image \"{image}\" is not present with pull policy of Never")
}

/// It was pulled. What a pull waits for here is other layers, not other pulls: both times are one.
pub(super) fn pulled(image: &str, took: Duration, bytes: u64) -> String {
    let took = go(took);
    format!("Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {bytes} bytes.")
}

/// A time to the millisecond, as Go prints it: `1m2.5s`. <https://pkg.go.dev/time#Duration.String>
fn go(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    if seconds == 0 {
        return if millis == 0 { "0s".into() } else { format!("{millis}ms") };
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    let rest = format!("{}{fraction}s", seconds % 60);
    match (hours, minutes) {
        (0, 0) => rest,
        (0, _) => format!("{minutes}m{rest}"),
        _ => format!("{hours}h{minutes}m{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0s")]
    #[case(7, "7ms")]
    #[case(1000, "1s")]
    #[case(1050, "1.05s")]
    #[case(62_500, "1m2.5s")]
    #[case(3_600_001, "1h0m0.001s")]
    fn times_are_as_go_prints_them(#[case] millis: u64, #[case] text: &str) {
        assert_eq!(go(Duration::from_millis(millis)), text);
    }

    #[test]
    fn a_pull_says_how_long_it_took_and_how_much_it_was() {
        assert_eq!(
            pulled("r/i:1", Duration::from_micros(120_900), 7),
            "Successfully pulled image \"r/i:1\" in 120ms (120ms including waiting). Image size: 7 bytes."
        );
    }
}
