//! A container as the holder keeps it: its process, its output, and what is remembered of it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use podholder::protocol::{ContainerState, Exit, PidNamespace};

use crate::output::{Flow, Log, Stream, log_retry};
use crate::poll::{Interest, Poll, Token};
use crate::task::Live;

/// A stream and its place in the epoll set, which it leaves while reading has to wait.
struct Slot {
    stream: Stream,
    key: Option<u64>,
    ended: bool,
}

/// See the module's page.
pub struct Container {
    pub number: u64,
    pub state: ContainerState,
    pub pid_namespace: PidNamespace,
    /// Unset once it ended.
    pub live: Option<Live>,
    /// The holder's write end of its stdin; with a terminal, the master.
    pub stdin: Option<OwnedFd>,
    /// The holder's own slave of its terminal.
    pub slave: Option<OwnedFd>,
    /// Not shown any more: gone once its output is written.
    pub forgotten: bool,
    log: Option<Log>,
    slots: [Option<Slot>; 2],
    retry_at: Option<Instant>,
}

impl Container {
    pub fn new(number: u64, state: ContainerState, pid_namespace: PidNamespace, log: Option<Log>) -> Self {
        Self {
            number,
            state,
            pid_namespace,
            live: None,
            stdin: None,
            slave: None,
            forgotten: false,
            log,
            slots: [None, None],
            retry_at: None,
        }
    }

    /// Begins to read a stream: 0 is stdout or the terminal, 1 is stderr.
    pub fn add_stream(&mut self, index: usize, fd: OwnedFd, poll: &mut Poll) -> std::io::Result<()> {
        let stream = Stream::new(fd, if index == 0 { b"stdout" } else { b"stderr" })?;
        let key = poll.add(&stream, Interest::IN, Token::Stream(self.number, index))?;
        self.slots[index] = Some(Slot { stream, key: Some(key), ended: false });
        Ok(())
    }

    /// Copies what a stream has to say.
    pub fn pump(&mut self, index: usize, to_the_end: bool, poll: &mut Poll) {
        let Some(slot) = self.slots[index].as_mut().filter(|s| !s.ended) else { return };
        match slot.stream.pump(&mut self.log, to_the_end) {
            Flow::Empty | Flow::More => {}
            Flow::Blocked => stop_watching(slot, poll),
            Flow::Ended => {
                slot.stream.finish(&mut self.log);
                slot.ended = true;
                stop_watching(slot, poll);
            }
        }
        if self.log.as_ref().is_some_and(Log::is_blocked) {
            self.retry_at.get_or_insert_with(|| log_retry(Instant::now()));
        }
        self.settle(index, poll);
    }

    /// Watches the attachments that wait, and lets go of a stream that ended once they have all.
    fn settle(&mut self, index: usize, poll: &mut Poll) {
        let Some(slot) = &self.slots[index] else { return };
        let mut waiting = false;
        for (id, fd) in slot.stream.waiting() {
            waiting = true;
            // Once: an attachment may be closed here while its owner still has it open, and then it could not be taken out.
            // That it is watched already is no harm.
            let _ = poll.add_once(fd, Interest::OUT, Token::Attachment(self.number, id));
        }
        if slot.ended && !waiting {
            self.slots[index] = None;
            self.close_log();
        }
    }

    /// An attachment takes bytes again.
    pub fn flush_attachment(&mut self, id: u64, poll: &mut Poll) {
        for index in 0..self.slots.len() {
            if self.slots[index].as_mut().is_some_and(|s| s.stream.flush(id)) {
                self.settle(index, poll);
            }
        }
        self.resume(poll);
    }

    /// Does what is due by now: tries the disk again, lets go of attachments that hold everything up.
    pub fn tick(&mut self, now: Instant, poll: &mut Poll) {
        if self.retry_at.is_some_and(|at| at <= now) {
            let written = self.log.as_mut().is_none_or(Log::retry);
            self.retry_at = (!written).then(|| log_retry(now));
            self.close_log();
        }
        for index in 0..self.slots.len() {
            if let Some(slot) = self.slots[index].as_mut().filter(|s| s.stream.deadline().is_some_and(|d| d <= now)) {
                slot.stream.drop_stalled(now);
                self.settle(index, poll);
            }
        }
        self.resume(poll);
    }

    fn resume(&mut self, poll: &mut Poll) {
        if self.retry_at.is_some() {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot.as_mut().filter(|s| s.key.is_none() && !s.ended && !s.stream.is_held_up()) {
                slot.key = poll.add(&slot.stream, Interest::IN, Token::Stream(self.number, index)).ok();
            }
        }
    }

    /// When [`Container::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let streams = self.slots.iter().flatten().filter_map(|s| s.stream.deadline());
        streams.chain(self.retry_at).min()
    }

    pub fn attach(&mut self, index: usize, id: u64, fd: OwnedFd) -> std::io::Result<()> {
        match self.slots[index].as_mut().filter(|s| !s.ended) {
            Some(slot) => slot.stream.attach(id, fd),
            // Its end of file says that nothing will come.
            None => Ok(()),
        }
    }

    /// Its process ended: its output is written, as far as it is there, and it is remembered how it ended.
    pub fn ended(&mut self, exit: Exit, poll: &mut Poll) {
        if let Some(live) = self.live.take() {
            live.release(poll);
        }
        self.slave = None;
        for index in 0..self.slots.len() {
            self.pump(index, true, poll);
        }
        self.stdin = None;
        self.state.exit = Some(exit);
        self.close_log();
    }

    /// Once all is written the log needn't be open: an ended container is remembered for long.
    fn close_log(&mut self) {
        if self.is_idle() {
            self.log = None;
        }
    }

    /// Nothing is left to do for it.
    pub fn is_idle(&self) -> bool {
        self.live.is_none() && self.retry_at.is_none() && self.slots.iter().all(Option::is_none)
    }

    /// Takes its streams out of the epoll set, before it is dropped.
    pub fn close(&mut self, poll: &mut Poll) {
        for slot in self.slots.iter_mut().flatten() {
            stop_watching(slot, poll);
        }
    }
}

fn stop_watching(slot: &mut Slot, poll: &mut Poll) {
    if let Some(key) = slot.key.take() {
        poll.remove(slot.stream.as_fd(), key);
    }
}
