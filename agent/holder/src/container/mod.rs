//! A container's init: applies a recipe, step by step, and executes the command.
//!
//! The order is the story; each function says why its step can't move.

pub mod command;
pub mod credentials;
mod devices;
pub mod limits;
mod mask;
pub mod mounts;
pub mod paths;
mod rootfs;
pub mod terminal;
pub mod user;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use podholder::protocol::{Fault, IdMaps, Process, Recipe, Stage};
use podholder::sys::{self, attr, ns};
use rustix::fs::Mode;

use crate::birth::{Birth, go_on};
use crate::cgroups::Group;
use crate::child::{Parts, Report, Status};
use crate::clock::Steps;
use crate::fault::OrFault;
use crate::shm::Kept;
use mounts::Shown;
use paths::Root;

pub use mounts::makes_procfs_of_others;
pub use rootfs::mapped_root;

/// What a container is given by its pod.
pub struct Pod<'a> {
    /// The container's own cgroups.
    pub cgroups: &'a [Group],
    /// The maps of its USER namespace, if it has one.
    pub maps: Option<&'a IdMaps>,
    /// What [`Namespaces::shm`] is.
    pub shm: Kept,
}

/// The namespaces' descriptors, as [`Parts::kept`] brings them.
pub struct Namespaces {
    /// The pod's /dev/shm.
    pub shm: OwnedFd,
    /// The USER namespace.
    pub user: Option<OwnedFd>,
    /// A process whose PID namespace is joined last.
    pub pid: Option<OwnedFd>,
}

impl Namespaces {
    /// In the order in which the holder gave them: shm, then user if the pod has it, then pid.
    pub fn from_kept(kept: Vec<OwnedFd>, pod: &Pod<'_>) -> Option<Self> {
        let mut kept = kept.into_iter();
        Some(Self { shm: kept.next()?, user: pod.maps.and_then(|_| kept.next()), pid: kept.next() })
    }
}

/// The last of what is kept: see [`Pod::cgroups`], whose own descriptors are closed in the child.
fn shown_cgroups<'a>(pod: &Pod<'a>, trees: Vec<OwnedFd>) -> Vec<Shown<'a>> {
    pod.cgroups.iter().zip(trees).map(|(group, tree)| Shown { name: &group.hierarchy.name, tree }).collect()
}

/// The flags of a container's clone3. PID is made later when a USER namespace has to own it.
pub fn clone_flags(recipe: &Recipe, pod: &Pod<'_>) -> u64 {
    let own_pid = recipe.makes_pid_namespace() && pod.maps.is_none();
    ns::MNT | if own_pid { ns::PID } else { 0 }
}

/// The first process of a container, from fork to exec.
pub fn init(recipe: &Recipe, pod: &Pod<'_>, parts: Parts) -> Result<Infallible, Fault> {
    let Parts { status, mut kept } = parts;
    let cgroups = shown_cgroups(pod, kept.split_off(kept.len().saturating_sub(pod.cgroups.len())));
    let Some(namespaces) = Namespaces::from_kept(kept, pod) else {
        return Err(crate::fault::refused(Stage::Namespace, "", "a descriptor is missing"));
    };
    let mut steps = Steps::start();
    let process = &recipe.process;
    // Modes are given in full below.
    rustix::process::umask(Mode::empty());
    // Both need rights that the USER namespace doesn't give.
    limits::before_user_namespace(process)?;
    let label = credentials::Label::open(process)?;
    let birth = namespaces.pid.as_ref().map_or(Ok(Birth::Done), |target| Birth::prepare(target.as_fd()))?;
    let user_ns = namespaces.user.as_ref().map(AsFd::as_fd);
    // Before propagation is cut, so that a mount which asks for it stays in touch with the host's.
    let trees = mounts::open_sources(&recipe.mounts, user_ns, (namespaces.shm.as_fd(), pod.shm))?;
    steps.done("sources");
    let status = rootfs_and_user_namespace(recipe, pod, user_ns, status, &mut steps)?;
    // After the cgroups are joined: they are the roots that it shows.
    sys::unshare(ns::CGROUP).or_fault(Stage::Namespace, "cgroup")?;
    let root = rootfs::open(&recipe.rootfs, user_ns.is_some())?;
    mounts::attach(&root, recipe, (pod, birth.namespace()), (trees, &cgroups))?;
    steps.done("mounts");
    devices::make(&root, recipe, user_ns.is_some())?;
    let terminal = process.tty.then(|| terminal::open(&root, process, &status)).transpose()?;
    if let Some(terminal) = &terminal {
        terminal::bind_console(&root, terminal)?;
    }
    mask::apply(&root, recipe)?;
    steps.done("devices and masks");
    rootfs::pivot(&root, &recipe.rootfs)?;
    steps.done("pivot_root");
    become_process(process, &root, label, terminal, (status, birth), steps)
}

/// `/` is mounted with the holder's rights; then, where the pod has a USER namespace, this process gives them up for those that
/// the namespace has. A PID namespace that it shall own can be made only by a child: that one is the holder's child too
/// (`CLONE_PARENT`) and goes on in this one's place.
fn rootfs_and_user_namespace(
    recipe: &Recipe,
    pod: &Pod<'_>,
    user_ns: Option<BorrowedFd<'_>>,
    status: Status,
    steps: &mut Steps,
) -> Result<Status, Fault> {
    rootfs::cut_propagation()?;
    rootfs::mount(&recipe.rootfs, user_ns, pod.maps)?;
    steps.done("overlay");
    let Some(user_ns) = user_ns else { return Ok(status) };
    rootfs::stand_on(&recipe.rootfs)?;
    sys::setns(user_ns, ns::USER).or_fault(Stage::Namespace, "user")?;
    sys::set_ids(0, 0, &[]).or_fault(Stage::Namespace, "user")?;
    credentials::stay_private().or_fault(Stage::Namespace, "user")?;
    // A second copy of the mounts, owned by the USER namespace: in the first one it may mount nothing.
    sys::unshare(ns::MNT).or_fault(Stage::Namespace, "mnt")?;
    if recipe.makes_pid_namespace() {
        go_on(sys::clone3(ns::PARENT | ns::PID, None).or_fault(Stage::Fork, "")?, &status)?;
    }
    status.die_with_holder().or_fault(Stage::Namespace, "user")?;
    steps.done("user namespace");
    Ok(status)
}

/// From a process inside the container's namespaces to the command: the same for a container's first process and for an exec.
pub fn become_process(
    process: &Process,
    root: &Root,
    label: Option<credentials::Label>,
    terminal: Option<terminal::Terminal>,
    (status, birth): (Status, Birth),
    mut steps: Steps,
) -> Result<Infallible, Fault> {
    // Its maker's session keyring would be the agent's. Missing in some kernels, and of no use to most programs.
    let _ = sys::new_session_keyring();
    let identity = user::look_up(root, &process.user)?;
    match terminal {
        Some(terminal) => terminal::take(terminal, identity.uid, &birth)?,
        None => terminal::own_stdio(identity.uid),
    }
    let env = command::environment(process, &identity.home);
    // While still root: a directory that only root may enter is a valid working directory, as with other runtimes.
    let entered = command::enter_working_directory(root, &process.cwd);
    if let Some(label) = label {
        label.write()?;
    }
    let seccomp = credentials::Seccomp::parse(process)?;
    // Without no_new_privs the filter needs CAP_SYS_ADMIN: now or never.
    if process.no_new_privs {
        sys::set_no_new_privs().or_fault(Stage::Credentials, "no_new_privs")?;
    } else {
        seccomp.load()?;
    }
    // A limit on descriptors could hinder all that was opened above; to raise one needs rights that end here.
    limits::apply(process)?;
    credentials::apply(process, &identity)?;
    status.die_with_holder().or_fault(Stage::Credentials, "")?;
    if entered.is_err() {
        // Perhaps only the user may enter it (NFS with root_squash, FUSE).
        command::enter_working_directory(root, &process.cwd)?;
    }
    rustix::process::umask(Mode::from_raw_mode(if process.umask == 0 { 0o022 } else { process.umask }));
    let path = command::find(process)?;
    if birth.namespace().is_some() {
        birth.complete(&status)?;
        if process.tty {
            terminal::control()?;
        }
    }
    steps.done("process");
    status.send(&Report::Ready(steps.take()), &[]);
    // With no_new_privs it comes last, so that the filter need not allow what the steps before it do.
    if process.no_new_privs {
        seccomp.load()?;
    }
    command::execute(&path, process, &env)
}

/// Mount attributes of a mount of the recipe.
fn mount_attributes(mount: &podholder::protocol::Mount) -> u64 {
    let read_only = mount.read_only || mount.recursive_read_only;
    [(read_only, attr::RDONLY), (mount.nosuid, attr::NOSUID), (mount.nodev, attr::NODEV), (mount.noexec, attr::NOEXEC)]
        .iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, flag)| all | flag)
}

/// Where a container's path is on the host while `/` isn't yet its own: for messages.
fn shown(path: &std::path::Path) -> String {
    PathBuf::from("/").join(path).display().to_string()
}
