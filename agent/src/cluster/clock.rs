//! The API server's clock beside this machine's: certificates, tokens and leases mean little where the two differ. Each answer says the
//! time (the header Date); nobody asks for it.

use hyper::HeaderMap;
use hyper::header::DATE;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use tokio::sync::watch;

use super::Cluster;
use crate::pod::Node;
use crate::pod::recorder::Level;

/// Seconds off that matter to nobody, whatever else goes wrong: the header has whole seconds, and answers take a while.
const FINE: i64 = 5;
/// Seconds off that are told though all goes well.
const TOO_MUCH: i64 = 60;

/// How far this machine's clock is off, as the API server said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    /// Seconds; positive: this machine's is ahead.
    ahead: watch::Sender<i64>,
}

impl Clock {
    /// Takes note of an answer's date, if it has one.
    pub(super) fn hear(&self, headers: &HeaderMap) {
        let Some(there) = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(read) else { return };
        let ahead = Timestamp::now().duration_since(there).as_secs();
        self.ahead.send_if_modified(|known| {
            // A second more or less is the header's.
            let news = known.abs_diff(ahead) > 1;
            if news {
                *known = ahead;
            }
            news
        });
    }

    /// What may be why something went wrong.
    pub(super) fn suspicion(&self) -> Option<String> {
        let ahead = *self.ahead.borrow();
        (ahead.abs() > FINE).then(|| sentence(ahead))
    }
}

fn read(date: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(date).ok()
}

fn sentence(ahead: i64) -> String {
    let way = if ahead > 0 { "ahead" } else { "behind" };
    format!("this machine's clock is {} s off from the API server's ({way})", ahead.abs())
}

/// Says when the clock is off by too much, and when it isn't any more; never returns.
pub(super) async fn follow(cluster: &Cluster, node: &Node) {
    let mut heard = cluster.clock.ahead.subscribe();
    let mut off = false;
    while let Ok(ahead) = heard.wait_for(|ahead| (ahead.abs() > TOO_MUCH) != off).await.map(|ahead| *ahead) {
        off = !off;
        if off {
            let message = format!("{}: certificates and tokens may be refused; is the time synchronized here?", sentence(ahead));
            node.recorder.node(Level::Warning, "ClockSkewed", &message);
        } else {
            node.recorder.node(Level::Normal, "ClockMended", "This machine's clock is the API server's again");
        }
    }
    // The cluster's own end.
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn heard(seconds: i64) -> Clock {
        let clock = Clock::default();
        let there = (Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_zoned(jiff::tz::TimeZone::UTC);
        let date = there.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        clock.hear(&HeaderMap::from_iter([(DATE, HeaderValue::from_str(&date).unwrap())]));
        clock
    }

    #[test]
    fn an_answers_date_tells_how_far_the_clock_is_off() {
        assert_eq!(heard(0).suspicion(), None);
        assert_eq!(heard(-3).suspicion(), None);
        let ahead = heard(-7200).suspicion().unwrap();
        assert!(
            ahead.starts_with("this machine's clock is 720") && ahead.ends_with(" s off from the API server's (ahead)"),
            "{ahead}"
        );
        assert!(heard(7200).suspicion().unwrap().ends_with("(behind)"));
    }

    #[test]
    fn what_is_no_date_says_nothing() {
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some("1994-11-06T08:49:37Z".parse().unwrap()));
        assert_eq!(read("yesterday"), None);
        let clock = heard(7200);
        clock.hear(&HeaderMap::new());
        assert!(clock.suspicion().is_some());
    }
}
