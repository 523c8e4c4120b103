//! Sockets in pods' network namespaces. A thread of their own goes from one namespace to the next and opens them: a thread that carries
//! tasks may never leave the host's, and asking each pod's holder would wake a process for each probe. It doesn't stay: the namespace of a pod
//! that is gone, with its link and address, would last until the next probe of another.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

use podholder::sys::{self, ns};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::oneshot;

/// See the module's page.
#[derive(Debug)]
pub struct Sockets {
    ask: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct Ask {
    process: Arc<OwnedFd>,
    family: AddressFamily,
    tell: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Sockets {
    /// Starts the thread, which ends with the last who could ask it.
    pub fn start() -> io::Result<Self> {
        let (ask, asked) = mpsc::channel::<Ask>();
        let home = File::open("/proc/thread-self/ns/net")?;
        std::thread::Builder::new().name("sockets".into()).spawn(move || {
            for Ask { process, family, tell } in asked {
                // An error means that nobody waits for it any more.
                let _ = tell.send(tcp(process.as_fd(), family));
                if let Err(error) = sys::setns(home.as_fd(), ns::NET) {
                    tracing::warn!(%error, "a pod's network namespace lasts until the next probe");
                }
            }
        })?;
        Ok(Self { ask })
    }

    /// A TCP socket, nonblocking, in the network namespace of a process (a pidfd). ESRCH: it has ended.
    pub async fn tcp(&self, process: Arc<OwnedFd>, family: AddressFamily) -> io::Result<OwnedFd> {
        let over = || io::Error::other("the thread that opens sockets in pods has ended");
        let (tell, told) = oneshot::channel();
        self.ask.send(Ask { process, family, tell }).map_err(|_| over())?;
        told.await.unwrap_or_else(|_| Err(over()))
    }
}

fn tcp(process: BorrowedFd<'_>, family: AddressFamily) -> io::Result<OwnedFd> {
    sys::setns(process, ns::NET)?;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::path::PathBuf;
    use std::process::{Child, Command};
    use std::time::Duration;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use tokio::net::TcpSocket;

    use super::*;

    /// Ended with the test.
    struct Other(Child);

    impl Other {
        /// In a network namespace whose loopback is down.
        fn start() -> Self {
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "echo; exec sleep 1000"]).stdout(std::process::Stdio::piped());
            let mut child = command.spawn().expect("this test needs root and util-linux");
            let mut word = [0; 1];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
            Self(child)
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn pidfd(pid: u32) -> Arc<OwnedFd> {
        Arc::new(pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap())
    }

    async fn connects(sockets: &Sockets, process: &Arc<OwnedFd>, to: SocketAddr) -> io::Result<()> {
        let socket = sockets.tcp(process.clone(), AddressFamily::INET).await?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await.map(drop)
    }

    #[tokio::test]
    async fn each_is_in_the_namespace_that_was_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let other = Other::start();
        let (own, others) = (pidfd(std::process::id()), pidfd(other.0.id()));
        let sockets = Sockets::start().unwrap();
        for _ in 0..2 {
            connects(&sockets, &own, to).await.unwrap();
            assert_eq!(connects(&sockets, &others, to).await.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
        }
        // Nothing of ours stays behind.
        let namespace = |path: PathBuf| std::fs::read_link(path).ok();
        let left = namespace(format!("/proc/{}/ns/net", other.0.id()).into());
        let stays = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            tasks.filter(|task| namespace(task.path().join("ns/net")) == left).count() > 0
        };
        let leaves = async {
            while stays() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), leaves).await.expect("the thread goes home");
        drop(other);
        let gone = sockets.tcp(others, AddressFamily::INET).await.unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(nix::libc::ESRCH));
        connects(&sockets, &own, to).await.unwrap();
    }
}
