//! Where the program is: a filter (cls_bpf) of what comes in by a link. No I/O. linux/pkt_cls.h is the reference.
//!
//! Not tcx, which is newer and a little shorter: for each program that it takes on or lets go the kernel waits for RCU with its lock of all
//! links held, some 10 to 30 ms. A filter costs some 0.1 ms, unless it comes at once after the queueing discipline that it hangs in.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use crate::{
    netlink::Request,
    tc::{ETH_P_ALL, INGRESS, message},
};

/// The last of a link's filters: what others have there sees all, and may drop it.
const PRIORITY: u32 = 0xffff;
const HANDLE: TcHandle = TcHandle { major: 0, minor: 1 };

/// Lets a program see what comes in by a link that can be filtered ([`crate::tc::ingress`]), in place of one that was put there so before.
pub(crate) fn put(link: u32, name: &str, program: BorrowedFd<'_>) -> Request {
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(name.to_owned()),
        // What the program returns is what becomes of the packet.
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    Request::new(RouteNetlinkMessage::NewTrafficFilter(filter(link, options.map(TcOption::Bpf).into())), NLM_F_CREATE)
}

/// Takes it away. Not there: refused.
pub(crate) fn remove(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelTrafficFilter(filter(link, Vec::new())), 0)
}

/// Which is there? None: refused. See [`program`].
pub(crate) fn get(link: u32) -> Request {
    Request::new(RouteNetlinkMessage::GetTrafficFilter(filter(link, Vec::new())), 0)
}

/// The number of the program that an answer names.
pub(crate) fn program(answer: &[RouteNetlinkMessage]) -> Option<u32> {
    let attributes = answer.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(&filter.attributes),
        _ => None,
    });
    let options = attributes.flatten().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

fn filter(link: u32, options: Vec<TcOption>) -> TcMessage {
    message(link, HANDLE, INGRESS, PRIORITY << 16 | u32::from(ETH_P_ALL.to_be()), TcFilterBpf::KIND, options)
}
