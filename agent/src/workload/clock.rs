//! Waiting for a moment of the wall clock, which may be set meanwhile or go on while the machine sleeps: a timer of the kernel's that
//! tells of both, where there is one.

use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

/// Without such a timer, the clock is looked at so often.
const LOOK: Duration = Duration::from_secs(30);

/// See the module's page.
#[derive(Debug)]
pub(super) struct Clock(Option<AsyncFd<OwnedFd>>);

impl Clock {
    pub(super) fn open() -> Self {
        let made = rustix::time::timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC);
        let timer = made.map_err(std::io::Error::from).and_then(watched);
        if let Err(error) = &timer {
            tracing::warn!(%error, "no timer of the wall clock: a clock that is set is seen later");
        }
        Self(timer.ok())
    }

    /// Until then, or until the clock was set. For ever, where there is no moment.
    pub(super) async fn until(&self, at: Option<Timestamp>) {
        let Some(at) = at else { return std::future::pending().await };
        match &self.0 {
            Some(timer) if set(timer.get_ref(), at) => {
                // An error is the kernel's word that the clock was set.
                if let Ok(mut ready) = timer.readable().await {
                    ready.clear_ready();
                }
            }
            _ => {
                let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                tokio::time::sleep(wait.min(LOOK)).await;
            }
        }
    }
}

#[expect(deprecated, reason = "the new way is unsafe, for types that give another descriptor each time: an OwnedFd never does")]
fn watched(timer: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(timer)
}

/// Sets the timer anew, which also takes back that it had rung.
fn set(timer: &OwnedFd, at: Timestamp) -> bool {
    let value = Timespec { tv_sec: at.as_second(), tv_nsec: i64::from(at.subsec_nanosecond()) };
    // Zero would disarm it; a moment that is past rings at once.
    let value = if value.tv_sec <= 0 { Timespec { tv_sec: 0, tv_nsec: 1 } } else { value };
    let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    // The kernel says once that the clock was set; it is asked for a moment, so that doesn't matter.
    let mut tries = (0..2).map(|_| rustix::time::timerfd_settime(timer, flags, &spec));
    tries.any(|set| set.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_then_and_again() {
        let clock = Clock::open();
        assert!(clock.0.is_some());
        for wait in [0, 20, 5] {
            let at = Timestamp::now().checked_add(Duration::from_millis(wait)).unwrap();
            clock.until(Some(at)).await;
            assert!(Timestamp::now() >= at);
        }
        clock.until(Some(Timestamp::UNIX_EPOCH)).await;
        // Given up before it rang: the next wait is its own.
        let late = Timestamp::now().checked_add(Duration::from_secs(60)).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(5), clock.until(Some(late))).await.is_err());
        clock.until(Some(Timestamp::now())).await;
    }
}
