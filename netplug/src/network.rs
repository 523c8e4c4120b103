//! The door: an asynchronous handle to the thread that does the work. It decides nothing.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, TryRecvError},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{read, write},
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, unbounded_channel},
    oneshot, watch,
};

use crate::{
    bandwidth::Bandwidth,
    engine::{Engine, Host, Waiting, Wake, Wanted, rules::Rules},
    error::{Doing, Error},
    lease::Lease,
    links::POD_LINK,
    nft::Obstacle,
    picture::Picture,
    settings::{Port, Settings},
    trace::{Flow, Step},
};

type Job = Box<dyn FnOnce(Result<&mut Engine, &Waiting>) + Send>;

/// A pod network that is up, in the network namespace of the thread that called [`Network::open`].
///
/// All requests are done one after the other on one thread: the kernel would serialise them anyway. Every method may be called
/// again after a failure or a crash; it then does what is left to do.
#[derive(Debug, Clone)]
pub struct Network {
    desk: Arc<Desk>,
}

/// Where jobs are handed in. The thread sleeps on the kernel's news as well, so a bell tells it of jobs, and rings for the
/// last time when there won't be any more. Fields are dropped in this order: when the thread hears it, the queue is closed.
#[derive(Debug)]
struct Desk {
    jobs: mpsc::Sender<Job>,
    bell: Bell,
    trouble: watch::Receiver<Option<String>>,
}

/// An eventfd: a pipe would tell the scheduler that the one who writes is about to sleep, and the thread would wait for that processor
/// while another is free.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    fn ring(&self) {
        // It can't be full, and an interruption doesn't reach what never waits.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// What a pod asks for.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// Identifies the pod: the same UID gets the same address.
    pub uid: &'a str,
    /// `namespace/name`, for messages.
    pub pod: &'a str,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// A `NETLINK_ROUTE` socket that was opened inside that namespace: nobody calls setns here.
    pub netlink: OwnedFd,
    /// Ports of the host that lead to the pod.
    pub ports: Vec<Port>,
    /// Addresses that it must have, at most one a family; empty: any.
    pub fixed: Vec<IpAddr>,
    /// How fast it may be; none: as fast as it can.
    pub bandwidth: Option<Bandwidth>,
}

/// What it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// One a family, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The default route's next hop, in the order of `ips`.
    pub gateways: Vec<IpAddr>,
    /// Of the pod's eth0.
    pub mac: [u8; 6],
    /// The host's end of the veth.
    pub host_if: String,
    /// Of the pod's eth0.
    pub mtu: u32,
    /// What each step took.
    pub steps: Vec<(&'static str, Duration)>,
}

/// What [`Network::close`] leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    /// Pods stay connected; a later [`Network::open`] goes on with them.
    Nothing,
    /// Links, rules, leases and the bridge (unless somebody else made it) are removed.
    All,
}

impl Network {
    /// Brings up the bridge with the gateways' addresses, forwarding and the nftables table, and goes on with the pods that an
    /// earlier process left.
    ///
    /// `net.ipv4.ip_forward` (and `net.ipv6.conf.all.forwarding`) is switched on as far as the ranges need it, and left on.
    pub async fn open(settings: Settings) -> Result<Network, Error> {
        Network::start(settings, Patience::None).await
    }

    /// As [`Network::open`], but where the host is in the way (a route into a range, as of a VPN; a bridge of that name that is somebody
    /// else's) it is waited until that is mended: the kernel tells of changes to links, addresses and routes. [`Network::trouble`] says
    /// what is in the way; what needs the network is refused with [`Error::NotUp`], and pods that end give their addresses back.
    pub async fn open_or_wait(settings: Settings) -> Result<Network, Error> {
        Network::start(settings, Patience::UntilMended).await
    }

    async fn start(settings: Settings, patience: Patience) -> Result<Network, Error> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, opened) = oneshot::channel();
        let (tell, trouble) = watch::channel(None);
        // Spawned here, not in a pool: a thread begins in the network namespace of the one that spawned it.
        let heard = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .doing(|| "make the bell of the network's thread".into())?;
        let bell = Bell(heard.try_clone().doing(|| "duplicate the bell of the network's thread".into())?);
        let work = move || match begin(&settings, patience) {
            Err(error) => drop(ready.send(Err(error))),
            Ok(begun) => {
                tell.send_replace(begun.as_ref().err().map(|waiting| waiting.reason.clone()));
                if ready.send(Ok(())).is_err() {
                    return;
                }
                let engine = match begun {
                    Ok(engine) => Some(engine),
                    Err(waiting) => wait(waiting, &settings, (&queue, &heard), &tell),
                };
                if let Some(mut engine) = engine {
                    tell.send_replace(None);
                    serve(&mut engine, &queue, &heard);
                }
            }
        };
        thread::Builder::new().name("netplug".into()).spawn(work).doing(|| "start the network's thread".into())?;
        opened.await.map_err(|_| Error::Closed)??;
        Ok(Network { desk: Arc::new(Desk { jobs, bell, trouble }) })
    }

    /// What of the host is in the way of the network, now and as it changes; None: it is up.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.desk.trouble.clone()
    }

    /// Returns when the network is up.
    pub async fn up(&self) {
        let mut trouble = self.trouble();
        // An error is the thread's end: then nothing is waited for any more.
        let _ = trouble.wait_for(Option::is_none).await;
    }

    /// Gives a pod its interface, addresses, routes and host ports. For a UID that is attached it answers with the same addresses
    /// and mends what is missing or changed, on the host and in the pod; ports are those of this call.
    ///
    /// A failure of the first attachment leaves nothing behind.
    pub async fn attach(&self, attachment: Attachment<'_>) -> Result<Attached, Error> {
        let Attachment { uid, pod, netns, netlink, ports, fixed, bandwidth } = attachment;
        let netns = netns.try_clone_to_owned().doing(|| format!("duplicate the network namespace's descriptor of pod {pod}"))?;
        let wanted = Wanted {
            uid: uid.into(),
            pod: pod.into(),
            netns,
            netlink,
            ports,
            fixed,
            bandwidth,
            mac: None,
            link: POD_LINK.into(),
            routes: None,
        };
        self.run(move |engine| engine.attach(&wanted)).await?
    }

    /// Takes ports, link and address from a pod. Not attached: nothing to do.
    ///
    /// Deleting one veth costs about 16 ms: the kernel waits for its readers (RCU), and others wait with it. When the namespace is
    /// about to end anyway, [`Network::release_when_netns_dies`] is the better choice.
    pub async fn detach(&self, uid: &str) -> Result<(), Error> {
        let uid = uid.to_owned();
        self.run_anyway(move |engine| match engine {
            Ok(engine) => engine.detach(&uid),
            Err(waiting) => waiting.release(&uid),
        })
        .await?
    }

    /// Takes ports and address from a pod at once, and leaves the veth to the kernel, which removes it with the namespace, many of
    /// them in one wait, and not while we hold up others. To be called when the pod's last process has ended. The address rests
    /// ([`Settings::reuse_after`]) before another pod gets it, so the dying link does no harm; should the namespace live on,
    /// [`Network::retain`] removes the link.
    pub async fn release_when_netns_dies(&self, uid: &str) -> Result<(), Error> {
        let uid = uid.to_owned();
        self.run_anyway(move |engine| match engine {
            Ok(engine) => engine.release_when_netns_dies(&uid),
            Err(waiting) => waiting.release(&uid),
        })
        .await?
    }

    /// All that pods hold, by UID.
    pub async fn attached(&self) -> Result<Vec<Lease>, Error> {
        self.run(|engine| engine.attached()).await
    }

    /// Frees addresses, ports and links of all pods but these; also links where pods' are that no pod has.
    pub async fn retain(&self, live: &[&str]) -> Result<(), Error> {
        let live: HashSet<String> = live.iter().map(|uid| (*uid).to_owned()).collect();
        self.run_anyway(move |engine| match engine {
            Ok(engine) => engine.retain(&live),
            Err(waiting) => waiting.retain(&live),
        })
        .await?
    }

    /// The UIDs of pods whose link somebody deletes, as it happens. The network alone can't mend that, for it keeps no pod's namespace
    /// open: [`Network::attach`] does. A pod whose namespace ended before it was released is told of as well.
    pub async fn severed(&self) -> Result<UnboundedReceiver<String>, Error> {
        let (listener, severed) = unbounded_channel();
        self.run(move |engine| engine.listen(listener)).await?;
        Ok(severed)
    }

    /// Makes these the services and policies, in place of those before: one atomic change of what differs. A network that is opened
    /// again goes on with them. Services need [`crate::Isolation::Routed`] for pods to be clients, policies for any effect on them.
    pub async fn enforce(&self, rules: Rules) -> Result<(), Error> {
        self.run(move |engine| engine.enforce(rules)).await?
    }

    /// What would become of a connection of a pod: the steps of each way that it could go. `host`: addresses of the node
    /// beside those that its links have now.
    pub async fn trace(&self, flow: Flow, host: Vec<IpAddr>) -> Result<Vec<Vec<Step>>, Error> {
        self.run(move |engine| engine.trace(flow, host)).await?
    }

    /// What there is: links, addresses, pods.
    pub async fn picture(&self) -> Result<Picture, Error> {
        self.run(Engine::picture).await?
    }

    /// The rules that are in force.
    pub async fn rules(&self) -> Result<Rules, Error> {
        self.run(|engine| engine.rules()).await
    }

    /// Chains of other firewalls that may drop what pods send and get: to be told to the user, not to be changed.
    pub async fn obstacles(&self) -> Result<Vec<Obstacle>, Error> {
        self.run(Engine::obstacles).await?
    }

    /// The same, now and whenever that changes: the kernel tells of it.
    pub async fn firewalls(&self) -> Result<watch::Receiver<Vec<Obstacle>>, Error> {
        self.run(Engine::firewalls).await?
    }

    /// Ends the network. Dropping it instead is the same as [`Remove::Nothing`].
    pub async fn close(self, remove: Remove) -> Result<(), Error> {
        // What isn't up needn't be taken down.
        self.run_anyway(move |engine| engine.map_or(Ok(()), |engine| engine.close(remove))).await?
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Engine) -> T + Send + 'static) -> Result<T, Error> {
        self.run_anyway(move |engine| engine.map(job).map_err(|waiting| Error::NotUp(waiting.reason.clone()))).await?
    }

    /// Also while the network isn't up.
    async fn run_anyway<T: Send + 'static>(
        &self,
        job: impl FnOnce(Result<&mut Engine, &Waiting>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |engine| drop(done.send(job(engine))));
        self.desk.jobs.send(job).map_err(|_| Error::Closed)?;
        self.desk.bell.ring();
        outcome.await.map_err(|_| Error::Closed)
    }
}

/// Whether a host that is in the way is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    UntilMended,
}

/// The network, or why it has to wait.
fn begin(settings: &Settings, patience: Patience) -> Result<Result<Engine, Waiting>, Error> {
    // Before the first try: what changes meanwhile counts.
    let host = if patience == Patience::UntilMended { Some(Host::new()?) } else { None };
    match (Engine::open(settings.clone()), host) {
        (Err(error), Some(host)) if error.is_of_the_host() => {
            Ok(Err(Waiting { reason: error.to_string(), host, dir: settings.state_dir.clone() }))
        }
        (opened, _) => opened.map(Ok),
    }
}

/// Answers jobs as far as it can without a network, until there is one; None: nobody wants it any more.
fn wait(
    mut waiting: Waiting,
    settings: &Settings,
    (queue, heard): (&mpsc::Receiver<Job>, &OwnedFd),
    tell: &watch::Sender<Option<String>>,
) -> Option<Engine> {
    tracing::warn!("the pod network has to wait: {}", waiting.reason);
    loop {
        if waiting.host.sleep(heard.as_fd()) == Wake::Bell {
            hear(queue, heard, |job| job(Err(&waiting)))?;
            continue;
        }
        match Engine::open(settings.clone()) {
            Ok(engine) => {
                tracing::info!("the pod network is up");
                return Some(engine);
            }
            Err(error) => {
                waiting.reason = error.to_string();
                tell.send_replace(Some(waiting.reason.clone()));
            }
        }
    }
}

/// Hands on all jobs that there are. None: there won't be any more.
fn hear(queue: &mpsc::Receiver<Job>, heard: &OwnedFd, mut each: impl FnMut(Job)) -> Option<()> {
    // Silenced before the queue is read: a job that comes in between rings again.
    let _ = read(heard, &mut [0; 8]);
    loop {
        match queue.try_recv() {
            Ok(job) => each(job),
            Err(TryRecvError::Empty) => return Some(()),
            Err(TryRecvError::Disconnected) => return None,
        }
    }
}

/// The thread's life: jobs, one after the other, and between them what the kernel tells.
fn serve(engine: &mut Engine, queue: &mpsc::Receiver<Job>, heard: &OwnedFd) {
    loop {
        if engine.sleep(heard.as_fd()) == Wake::Bell && hear(queue, heard, |job| job(Ok(engine))).is_none() {
            return;
        }
        engine.notice();
    }
}
