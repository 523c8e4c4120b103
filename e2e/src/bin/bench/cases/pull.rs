//! Images from a registry on loopback: downloaded, verified, unpacked.

use super::{Bench, Counts};
use crate::report::Row;

/// Each of the three in another of the formats that registries hold.
pub fn images(bench: &mut Bench<'_>) {
    for (image, format) in [("library/debian:12", "gzip"), ("library/nginx:1", "gzip, v2s2"), ("library/redis:7", "zstd")] {
        let mut pull = Row::milliseconds(format!("pull and unpack {image} ({format})")).against("pull");
        let mut copy = Row::milliseconds(format!("the same beside skopeo, which doesn't unpack: {image}")).against("skopeo copy");
        bench.rounds(5, |side, counts| {
            let took = side.pull(image);
            if counts == Counts::Yes {
                pull.add_time(side.name(), took);
                if side.name() == "us" {
                    copy.add_time(side.name(), took);
                }
            }
        });
        if let Some(podman) = &bench.podman {
            (0..5).for_each(|_| copy.add_time("podman", podman.skopeo(image)));
        }
        bench.report.add(pull);
        bench.report.add(copy);
    }
}
