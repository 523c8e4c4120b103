//! The pod's namespaces: made once, held for the pod's life, joined by every child.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podholder::beneath;
use podholder::protocol::{Fault, IdMap, PidNamespace, SandboxRecipe, Stage, Step};
use podholder::sys::{self, ns};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::stdio;

use crate::birth::When;
use crate::cgroups::Hierarchies;
use crate::child::{self, Child, Parts, Report, Spawn, Status};
use crate::clock::{self, Steps};
use crate::container::credentials;
use crate::fault::{OrFault, refused};
use crate::shm::Shm;

/// See the module's page.
pub struct Sandbox {
    pub recipe: SandboxRecipe,
    pub created_at: u64,
    /// PID 1 of the shared PID namespace.
    pub pause: Option<Child>,
    /// The USER namespace.
    pub user: Option<OwnedFd>,
    /// /dev/shm of its containers.
    pub shm: Shm,
    own_pid: OwnedFd,
}

impl Sandbox {
    /// Makes the namespaces, or takes those of [`prepare`]; the process is in them afterwards, and perhaps another than before: see
    /// [`child::move_into`].
    pub fn make(mut recipe: SandboxRecipe, prepared: bool, hierarchies: &mut Hierarchies) -> Result<(Self, Vec<Step>), Fault> {
        let mut steps = Steps::start();
        let flags = flags(&recipe);
        if prepared && !recipe.takes_prepared() {
            return Err(refused(Stage::Protocol, "", "the namespaces that are made aren't those of the recipe"));
        }
        child::move_into(&hierarchies.open_parents(&recipe.cgroups)?)?;
        if !recipe.title.is_empty() {
            // Cosmetics.
            let _ = sys::set_title(&recipe.title);
        }
        survive_others();
        let own_pid = open_namespace("/proc/self/ns/pid")?;
        let (user, mut pause) = match &recipe.user {
            Some(_) => make_with_user(&recipe, flags)?,
            None if prepared => (None, None),
            None => make_without_user(flags)?,
        };
        steps.done("namespaces");
        if let Some(name) = &recipe.hostname {
            rustix::system::sethostname(name.as_bytes()).or_fault(Stage::Namespace, name)?;
        }
        if let Some(name) = &recipe.domainname {
            rustix::system::setdomainname(name.as_bytes()).or_fault(Stage::Namespace, name)?;
        }
        write_sysctls(&recipe.sysctls)?;
        steps.done("hostname and sysctls");
        let shm = Shm::make(&recipe)?;
        steps.done("shm");
        if recipe.share_pid && pause.is_none() {
            pause = Some(spawn_pause(ns::PID | ns::MNT, Rights::Drop)?);
        }
        if let Some(pause) = &pause {
            start_pause(pause)?;
            steps.done("pause");
        }
        recipe.sysctls.clear();
        let created_at = clock::now();
        Ok((Self { recipe, created_at, pause, user, shm, own_pid }, steps.take()))
    }

    /// What every child gets beside its standard descriptors.
    pub fn namespaces(&self) -> Vec<BorrowedFd<'_>> {
        [Some(self.shm.as_fd()), self.user.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect()
    }

    /// Whose PID namespace a child joins: the pod's, or with `of` (a pidfd) that of a running process; none if it joins none.
    pub fn pid_target<'a>(&'a self, pid: PidNamespace, of: Option<BorrowedFd<'a>>) -> Result<Option<BorrowedFd<'a>>, Fault> {
        match (pid, of, &self.pause) {
            (_, Some(pidfd), _) => Ok(Some(pidfd)),
            (PidNamespace::Pod, None, Some(pause)) => Ok(Some(pause.pidfd.as_fd())),
            (PidNamespace::Pod, None, None) => Err(refused(Stage::Namespace, "pid", "the pod has no PID namespace of its own")),
            (PidNamespace::Own | PidNamespace::Host, None, _) => Ok(None),
        }
    }

    /// When a child that joins a PID namespace is to be born there. In a USER namespace nobody has a right over what the holder makes,
    /// and whoever may trace in the host's PID namespace has the host anyway.
    pub fn birth(&self, pid: PidNamespace) -> When {
        let safe = self.recipe.user.is_some() || pid == PidNamespace::Host || !self.recipe.may_trace;
        if safe { When::First } else { When::Last }
    }

    /// Forks a child into the PID namespace of `target`, or where it will go there itself.
    pub fn spawn_in_pid(
        &self,
        target: Option<BorrowedFd<'_>>,
        when: When,
        spawn: &Spawn<'_>,
        body: impl FnOnce(Parts) -> Result<Infallible, Fault>,
    ) -> Result<Child, Fault> {
        let Some(target) = target.filter(|_| when == When::First) else { return child::spawn(spawn, body) };
        // Where children are born is changed and changed back; this process itself never moves.
        sys::setns(target, ns::PID).or_fault(Stage::Namespace, "pid")?;
        let child = child::spawn(spawn, body);
        sys::setns(self.own_pid.as_fd(), ns::PID).or_fault(Stage::Namespace, "pid")?;
        child
    }
}

/// What most pods have: neither a USER namespace nor anything of the host's.
const PREPARED: u64 = ns::NET | ns::IPC | ns::UTS;

/// The namespaces of a pod that isn't known yet.
pub fn prepare() -> Result<(), Fault> {
    make_without_user(PREPARED).map(drop)
}

fn flags(recipe: &SandboxRecipe) -> u64 {
    let wanted = [(recipe.net, ns::NET), (recipe.ipc, ns::IPC), (recipe.hostname.is_some(), ns::UTS)];
    wanted.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag)
}

/// When the pod has no memory left, the kernel is to kill any of its processes but this one, which would take all with it. The
/// score is that of the kubelet's infra containers; each container's own is in its recipe. Where the machine doesn't permit it,
/// the holder is small, which protects it nearly as well.
fn survive_others() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
}

fn open_namespace(path: &str) -> Result<OwnedFd, Fault> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).or_fault(Stage::Namespace, path)
}

type UserAndPause = (Option<OwnedFd>, Option<Child>);

fn make_without_user(flags: u64) -> Result<UserAndPause, Fault> {
    if flags != 0 {
        sys::unshare(flags).or_fault(Stage::Namespace, "net, ipc, uts")?;
    }
    Ok((None, None))
}

/// A child makes the USER namespace, which then owns the others; this process joins those and stays in the host's USER namespace,
/// so that it can do for the containers what they may not. With `share_pid` the child stays as pause.
fn make_with_user(recipe: &SandboxRecipe, flags: u64) -> Result<UserAndPause, Fault> {
    let shared = if recipe.share_pid { ns::PID | ns::MNT } else { 0 };
    let maker = spawn_pause(ns::USER | flags | shared, Rights::BecomeMappedRoot)?;
    let proc = format!("/proc/{}", maker.pid);
    if let Some(maps) = &recipe.user {
        for (file, lines) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
            let path = format!("{proc}/{file}");
            std::fs::write(&path, map_text(lines)).or_fault(Stage::IdMap, map_text(lines).trim_end())?;
        }
    }
    let user = open_namespace(&format!("{proc}/ns/user"))?;
    if flags != 0 {
        sys::setns(maker.pidfd.as_fd(), flags).or_fault(Stage::Namespace, "net, ipc, uts")?;
    }
    if recipe.share_pid {
        return Ok((Some(user), Some(maker)));
    }
    // It waits for a word; the end of the conversation ends it.
    let Child { pidfd, status, .. } = maker;
    drop(status);
    reap_blocking(pidfd.as_fd())?;
    Ok((Some(user), None))
}

fn map_text(lines: &[IdMap]) -> String {
    lines.iter().map(|l| format!("{} {} {}\n", l.inside, l.outside, l.count)).collect()
}

fn reap_blocking(pidfd: BorrowedFd<'_>) -> Result<(), Fault> {
    rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd), rustix::process::WaitIdOptions::EXITED)
        .or_fault(Stage::Namespace, "")
        .map(drop)
}

/// What pause does about its rights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    Drop,
    BecomeMappedRoot,
}

/// A process that waits for a word of the holder's, then is PID 1 of the pod's containers and reaps what they leave.
fn spawn_pause(flags: u64, rights: Rights) -> Result<Child, Fault> {
    let stdio = [stdio::stdin(), stdio::stdout(), stdio::stderr()];
    let spawn = Spawn { flags, cgroups: &[], beside: None, stdio, keep: &[] };
    child::spawn(&spawn, |Parts { status, .. }| {
        if !status.wait_for_holder() {
            sys::exit_now(0);
        }
        pause(&status, rights)
    })
}

fn pause(status: &Status, rights: Rights) -> Result<Infallible, Fault> {
    // Before the containers come: with CAP_SYS_PTRACE they could look at its root, which must not be the host's.
    empty_root("mode=555,nr_inodes=1", MountFlags::RDONLY).or_fault(Stage::Namespace, "pause")?;
    if rights == Rights::BecomeMappedRoot {
        sys::set_ids(0, 0, &[]).or_fault(Stage::Namespace, "pause")?;
    }
    // Whoever may trace it (CAP_SYS_PTRACE) finds nothing to gain: without this, root that executes something gets all back.
    sys::set_no_new_privs().or_fault(Stage::Namespace, "pause")?;
    credentials::drop_bounding(0).or_fault(Stage::Namespace, "pause")?;
    sys::set_capabilities(0, 0, 0).or_fault(Stage::Namespace, "pause")?;
    status.die_with_holder().or_fault(Stage::Namespace, "pause")?;
    sys::set_not_dumpable().or_fault(Stage::Namespace, "pause")?;
    // Orphans that end are gone without a wait.
    sys::ignore_signal(libc::SIGCHLD);
    status.send(&Report::Ready(Vec::new()), &[]);
    sys::close_from(0).or_fault(Stage::Namespace, "pause")?;
    loop {
        sys::pause();
    }
}

/// Gives the word and waits for the answer: a few system calls away.
fn start_pause(pause: &Child) -> Result<(), Fault> {
    rustix::io::write(&pause.status, b"1").or_fault(Stage::Namespace, "pause")?;
    rustix::event::poll(&mut [rustix::event::PollFd::new(&pause.status, rustix::event::PollFlags::IN)], None)
        .or_fault(Stage::Namespace, "pause")?;
    let packet = podholder::wire::receive(pause.status.as_fd()).or_fault(Stage::Namespace, "pause")?;
    match packet.map(|p| p.decode()).transpose().or_fault(Stage::Namespace, "pause")? {
        Some(Report::Ready(_)) => Ok(()),
        Some(Report::Failed(fault)) => Err(fault),
        _ => Err(refused(Stage::Namespace, "pause", "it ended")),
    }
}

/// Makes a fresh tmpfs the root of this process's mount namespace, which must be its own.
pub fn empty_root(options: &str, flags: MountFlags) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", "/proc", "tmpfs", flags, Some(options.as_c_str()))?;
    rustix::process::chdir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Writes the sysctls, which the kernel takes for the namespaces of the writer.
fn write_sysctls(sysctls: &[(String, String)]) -> Result<(), Fault> {
    for (name, value) in sysctls {
        // Slashes where they are used separate, and dots are part of a name; else dots separate (sysctl(8)).
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let base =
            rustix::fs::openat(CWD, "/proc/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_fault(Stage::Sysctl, name)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = beneath::open(base, &path, OFlags::WRONLY, resolve).or_fault(Stage::Sysctl, name)?;
        rustix::io::write(&file, value.as_bytes()).or_fault(Stage::Sysctl, format_args!("{name}={value}"))?;
    }
    Ok(())
}
