//! The runtime as the pod's worker sees it: sandboxes and containers made, found again, and removed. Each call is idempotent and
//! may be repeated after a crash at any of its steps.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Container;
use oci_spec::image::ImageConfiguration;
use podholder::protocol::{HolderState, IdMaps, Process, Recipe, SandboxRecipe, Source, Step};
use rustix::fs::{Mode, OFlags};
use tokio::task::JoinSet;

use super::cgroup::plan::{self, Limits, Rules};
use super::cgroup::{Cgroups, DeviceRules, Group, Stats};
use super::error::{Cause, Error, Place, file};
use super::grant::Grant;
use super::holder::{CallError, Holder, Program, SandboxReply, Spare, Spares, Wires};
use super::inspect::{self, Inspection};
use super::prepared::Prepared;
use super::readers::Readers;
use super::recipe::env::Objects;
use super::recipe::{self, ContainerInput, sandbox};
use super::redact::Redaction;
use super::resources::{Qos, Totals, within};
use super::seccomp::Filters;
use super::settings::{Allocatable, Settings};
use super::volumes::{self, Volumes};
use super::{cdi, devices, files, record};
use crate::model::{PodUid, ValidPod};
use crate::random;

/// Makes and removes sandboxes and containers. One for an agent.
#[derive(Debug)]
pub struct Runtime {
    pub(super) settings: Settings,
    pub(super) cgroups: Cgroups,
    program: Arc<Program>,
    spares: OnceLock<Spares>,
    filters: Filters,
    rules: Rules,
    pub(super) pods: Mutex<HashMap<PodUid, Held>>,
    pub(super) prepared: Prepared,
    pub(super) readers: Readers,
}

/// What a pod holds of the node, as long as it lives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    /// The first of its host IDs, and how many.
    pub ids: Option<(u32, u32)>,
    /// What a burstable pod asks for, in thousandths of a CPU.
    pub burstable_cpu: u64,
    /// Bytes that it asks for; and whether it is burstable.
    pub memory: (u64, bool),
}

impl Held {
    fn of(pod: &ValidPod, ids: Option<(u32, u32)>) -> Self {
        let totals = Totals::of_pod(pod.spec());
        let burstable = Qos::of(pod.spec()) == Qos::Burstable;
        Self { ids, burstable_cpu: if burstable { totals.cpu_request } else { 0 }, memory: (totals.memory_request, burstable) }
    }
}

/// A pod's namespaces, held. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The pod as it was when the sandbox was made.
    pub pod: ValidPod,
    /// Speaks with the holder.
    pub holder: Holder,
    /// The pod's cgroup.
    pub group: Group,
    /// PID 1 of a shared PID namespace.
    pub pause_pid: Option<i32>,
    /// How long each step took; of an adopted one, empty.
    pub steps: Vec<Step>,
}

/// A sandbox that isn't made yet.
#[derive(Debug)]
pub struct Beginning {
    recipe: SandboxRecipe,
    spare: Option<Spare>,
    clock: Clock,
}

impl Beginning {
    /// The way into its network namespace, if that is there already: the network needn't wait for the rest.
    pub fn wires(&mut self) -> Option<Wires> {
        self.spare.as_mut().and_then(Spare::wires)
    }
}

/// A sandbox that an earlier life of the agent made, or what is left of it.
#[derive(Debug)]
pub struct Adopted {
    /// Whose.
    pub uid: PodUid,
    /// The pod, if its record can be read.
    pub pod: Option<ValidPod>,
    /// The holder with all that it knows; an error when it's gone or silent: remove the pod.
    pub sandbox: Result<(Sandbox, HolderState), Error>,
}

/// What a container is started with.
pub struct StartInput<'a> {
    /// Of the newest spec.
    pub pod: &'a ValidPod,
    /// One of its containers.
    pub container: &'a Container,
    /// 0, then one more for each restart.
    pub attempt: u32,
    /// The image's word.
    pub image: &'a ImageConfiguration,
    /// Unpacked, the lowest first.
    pub layers: &'a [PathBuf],
    /// The pod's addresses; empty on the host's network.
    pub pod_ips: &'a [IpAddr],
    /// From [`Runtime::prepare_volumes`].
    pub volumes: &'a Volumes,
    /// ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// The ID of a running container whose PID namespace it joins.
    pub beside: Option<String>,
    /// What it gets by the devices that are its own.
    pub grant: Option<&'a Grant>,
    /// Given back by the holder's state.
    pub note: serde_json::Value,
}

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Started {
    /// 64 hex digits.
    pub id: String,
    /// The first process on the host.
    pub pid: i32,
    /// Unix time in nanoseconds.
    pub started_at: u64,
    /// How long each step took.
    pub steps: Vec<Step>,
}

impl Runtime {
    /// Finds the machine's cgroups and makes the agent's folders.
    pub fn new(settings: Settings) -> Result<Self, Cause> {
        let made = [
            settings.run.join("pods"),
            settings.root_mount(),
            settings.lib.join("pods"),
            settings.claims.clone(),
            settings.log.clone(),
        ];
        for dir in made {
            fs::create_dir_all(&dir).map_err(file("make", &dir))?;
        }
        // Others on this machine have no business in pods' files and sockets.
        for dir in [settings.run.join("pods"), settings.lib.join("pods"), settings.claims.clone()] {
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(file("protect", &dir))?;
        }
        let cgroups = Cgroups::detect(&settings.cgroup_parent)?;
        let missing = cgroups.missing();
        if !missing.is_empty() {
            tracing::warn!("this machine has no cgroup controller for {}: such limits of pods are not kept", missing.join(", "));
        }
        let kept = settings.enforced != Allocatable::of_machine(&settings.lib);
        cgroups.prepare(&Limits {
            cpu_shares: Some(plan::shares(settings.enforced.cpu_millis)),
            // Where nothing is reserved, the machine itself is the limit.
            memory: kept.then_some(settings.enforced.memory),
            ..Limits::default()
        })?;
        let rules = Rules {
            pids: settings.pod_pids,
            throttling: settings.memory_throttling,
            single_process_oom_kill: settings.single_process_oom_kill,
            node_memory: settings.allocatable.memory,
            page_sizes: super::hugepages::of_machine().into_keys().collect(),
        };
        let program = Arc::new(Program::embedded().map_err(file("copy podholder into", Path::new("memory")))?);
        let filters = Filters::new(settings.seccomp_root.clone(), settings.seccomp_default_profile.as_deref())?;
        Ok(Self {
            settings,
            cgroups,
            program,
            spares: OnceLock::new(),
            filters,
            rules,
            pods: Mutex::default(),
            prepared: Prepared::default(),
            readers: Readers::default(),
        })
    }

    /// From now on a holder waits for the next pod. Must be called within a tokio runtime.
    pub fn keep_spare(&self) {
        self.spares.get_or_init(|| Spares::keep(self.program.clone()));
    }

    /// The node's part of all recipes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The pods' control groups.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Makes the pod's volumes, or finds them as they are.
    pub fn prepare_volumes(&self, input: volumes::Input<'_>) -> Result<Volumes, Error> {
        volumes::prepare(input, &self.settings).map_err(|cause| Place::pod(input.pod).error(cause))
    }

    /// Mounts the pod's volumes of other machines; the first step of making its volumes.
    pub async fn attach_volumes(&self, pod: &ValidPod) -> Result<(), Error> {
        volumes::attach(pod, &self.settings).await.map_err(|cause| Place::pod(pod).error(cause))
    }

    /// Ends the sessions that [`Self::attach_volumes`] began; once the volumes are unmounted.
    pub async fn detach_volumes(&self, pod: &ValidPod) -> Result<(), Error> {
        let errors = volumes::detach(pod).await;
        if errors.is_empty() { Ok(()) } else { Err(Place::pod(pod).error(Cause::Many(errors))) }
    }

    /// Brings a running pod's volumes to what its objects, labels and annotations say now. Goes on past errors.
    pub fn refresh_volumes(&self, input: volumes::Input<'_>) -> Vec<Error> {
        let place = Place::pod(input.pod);
        volumes::refresh(input, &self.settings).into_iter().map(|cause| place.error(cause)).collect()
    }

    /// Looks how much the pod's emptyDirs hold: the kubelet's sentence about one that is beyond its limit. Blocks on the disk.
    pub fn volume_over_limit(&self, pod: &ValidPod) -> Option<String> {
        volumes::usage::over_limit(pod, &self.settings)
    }

    /// Writes /etc/hosts, /etc/hostname and /etc/resolv.conf for the pod's containers. Says what of the last is left out.
    pub fn write_files(&self, pod: &ValidPod, pod_ips: &[IpAddr]) -> Result<Vec<String>, Error> {
        files::write(pod, &self.settings, pod_ips).map_err(|cause| Place::pod(pod).error(cause))
    }

    /// Makes the pod's folders, and says what its sandbox will be, with the holder that waits for the next pod, if there is one.
    pub fn begin_sandbox(&self, pod: &ValidPod, note: serde_json::Value) -> Result<Beginning, Error> {
        self.begin(pod, note).map_err(|cause| Place::pod(pod).error(cause))
    }

    fn begin(&self, pod: &ValidPod, note: serde_json::Value) -> Result<Beginning, Cause> {
        let mut clock = Clock::start();
        let ids = self.hold(pod)?;
        let recipe = sandbox::sandbox(pod, &self.settings, ids, note)?;
        self.make_pod_dirs(pod)?;
        record::write(&self.settings.pod_json(pod.uid()), pod)?;
        clock.step("folders");
        let spare = self.spares.get().and_then(|spares| spares.take(&recipe));
        Ok(Beginning { recipe, spare, clock })
    }

    /// Makes a pod's cgroup and namespaces; `meanwhile` is done while the holder works. On an error nothing runs; what lies
    /// about is [`Self::remove_pod`]'s. With the way into its network namespace, if it has one of its own that isn't
    /// [`Beginning::wires`]'.
    pub async fn make_sandbox(
        &self,
        pod: &ValidPod,
        beginning: Beginning,
        meanwhile: impl FnOnce(),
    ) -> Result<(Sandbox, Option<Wires>), Error> {
        let place = Place::pod(pod);
        self.make(pod, beginning, meanwhile).await.map_err(|cause| place.error(cause))
    }

    async fn make(
        &self,
        pod: &ValidPod,
        Beginning { mut recipe, spare, mut clock }: Beginning,
        meanwhile: impl FnOnce(),
    ) -> Result<(Sandbox, Option<Wires>), Cause> {
        let group = self.group(pod);
        group.create(&self.pod_limits(pod))?;
        let holders = group.for_holder();
        if holders.path() != group.path() {
            holders.create(&Limits::default())?;
        }
        self.weigh_burstable()?;
        recipe.cgroups = holders.holder_joins();
        clock.step("cgroup");
        let (made, ()) = tokio::join!(self.holder(spare, &recipe), async { meanwhile() });
        if let Some(spares) = self.spares.get() {
            spares.replenish();
        }
        let (holder, reply) = made?;
        clock.step("holder");
        let steps = clock.with_inner(reply.steps);
        Ok((Sandbox { pod: pod.clone(), holder, group, pause_pid: reply.pause_pid, steps }, reply.wires))
    }

    /// The spare one, or a new one.
    async fn holder(&self, spare: Option<Spare>, recipe: &SandboxRecipe) -> Result<(Holder, SandboxReply), CallError> {
        if let Some(spare) = spare {
            match spare.become_pods(recipe).await {
                // It was ended by somebody while it waited.
                Err(CallError::Gone(_)) => {}
                done => return done,
            }
        }
        Holder::spawn(&self.program, recipe).await
    }

    fn make_pod_dirs(&self, pod: &ValidPod) -> Result<(), Cause> {
        for dir in [self.settings.pod_run(pod.uid()), self.settings.pod_lib(pod.uid())] {
            make_dirs(&dir, 0o755)?;
        }
        // A holder of an earlier try left its socket.
        let socket = self.settings.holder_socket(pod.uid());
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove", &socket)(error)),
            _ => Ok(()),
        }
    }

    fn group(&self, pod: &ValidPod) -> Group {
        self.cgroups.pod(Qos::of(pod.spec()), pod.uid().as_str())
    }

    /// Remembers what the pod has of the node; picks its range of IDs, if it wants one.
    fn hold(&self, pod: &ValidPod) -> Result<Option<IdMaps>, Cause> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = Held::of(pod, pods.get(pod.uid()).and_then(|held| held.ids));
        let maps = if sandbox::wants_ids(pod) {
            let others = |start: u32, end: u32| {
                let overlaps = |(first, count): (u32, u32)| first < end && start < first.saturating_add(count);
                pods.iter().any(|(uid, other)| uid != pod.uid() && other.ids.is_some_and(overlaps))
            };
            let free = || sandbox::free_ids(self.settings.id_range, self.settings.ids_per_pod, others);
            let maps = held.ids.map(|(first, count)| sandbox::ids_from(first, count)).or_else(free);
            let none = || super::error::ConfigError::new("hostUsers: false: all ranges of host IDs are in use by other pods");
            Some(maps.ok_or_else(none)?)
        } else {
            None
        };
        held.ids = maps.as_ref().and_then(|m| m.uids.first()).map(|m| (m.outside, m.count));
        pods.insert(pod.uid().clone(), held);
        Ok(maps)
    }

    pub(super) fn weigh_burstable(&self) -> Result<(), Cause> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let cpu = pods.values().map(|held| held.burstable_cpu).fold(0, u64::saturating_add);
        let memory = self.settings.memory_throttling.map(|_| {
            let sum = |all: bool| {
                let counted = pods.values().filter(|held| all || held.memory.1).map(|held| held.memory.0);
                counted.fold(0, u64::saturating_add)
            };
            (sum(false), sum(true))
        });
        Ok(self.cgroups.set_requests(cpu, memory)?)
    }

    /// Finds all sandboxes of earlier lives, on all processors at once.
    pub async fn adopt(self: &Arc<Self>) -> Vec<Adopted> {
        let dir = self.settings.run.join("pods");
        let names = fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
        let one = |runtime: Arc<Self>, uid: PodUid| async move { runtime.adopt_one(uid).await };
        let found: JoinSet<Adopted> = names.map(|name| one(self.clone(), PodUid::new(&name))).collect();
        let adopted = found.join_all().await;
        if let Err(error) = self.weigh_burstable() {
            tracing::warn!("{error}");
        }
        adopted
    }

    /// Connects to a pod's holder anew.
    pub async fn adopt_pod(&self, pod: &ValidPod) -> Result<(Sandbox, HolderState), Error> {
        self.connect(pod.clone()).await.map_err(|cause| Place::pod(pod).error(cause))
    }

    async fn adopt_one(&self, uid: PodUid) -> Adopted {
        let record = record::read(&self.settings.pod_json(&uid));
        let pod = record.as_ref().ok().cloned();
        let place = pod.as_ref().map_or_else(|| Place::pod(&uid), Place::pod);
        let sandbox = match record {
            Ok(pod) => self.connect(pod).await,
            Err(cause) => Err(cause),
        };
        Adopted { uid, pod, sandbox: sandbox.map_err(|cause| place.error(cause)) }
    }

    async fn connect(&self, pod: ValidPod) -> Result<(Sandbox, HolderState), Cause> {
        let (holder, state) = Holder::connect(&self.settings.holder_socket(pod.uid())).await?;
        let ids = state.sandbox.user.as_ref().and_then(|maps| maps.uids.first()).map(|map| (map.outside, map.count));
        let held = Held::of(&pod, ids);
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid().clone(), held);
        let group = self.group(&pod);
        Ok((Sandbox { pod, holder, group, pause_pid: state.pause_pid, steps: Vec::new() }, state))
    }

    /// Runs a container: cgroup, folders, recipe, and the holder does the rest.
    pub async fn start_container(&self, sandbox: &Sandbox, input: StartInput<'_>) -> Result<Started, Error> {
        let place = Place::container(input.pod, &input.container.name);
        let prepared = self.prepared.take(input.pod.uid(), &input.container.name, input.attempt);
        let (id, limits) = match prepared {
            Some((id, limits)) => (id, Some(limits)),
            None => (new_id().map_err(|cause| place.error(cause))?, None),
        };
        let (pod, objects) = (input.pod, input.objects);
        let started = self.start(sandbox, input, &id, limits).await;
        if started.is_err() {
            // Nothing runs in it. What stays is removed with the container or the pod.
            let _ = sandbox.group.child(&id).remove().await;
        }
        started.map_err(|cause| place.error(cause).without(Redaction::of(pod, objects)))
    }

    /// The recipe of a container, and the cgroup that it names.
    fn recipe(&self, sandbox: &Sandbox, input: StartInput<'_>, id: &str) -> Result<(Recipe, Group), Cause> {
        let StartInput { pod, container, attempt, image, layers, pod_ips, volumes, objects, beside, grant, note } = input;
        let group = sandbox.group.child(id);
        let rules = device_rules(container);
        let devices = match grant {
            None => cdi::find(&cdi::names(pod)?, &self.settings.cdi_spec_dirs)?,
            Some(grant) => cdi::find(&cdi::names_with(pod, grant)?, &self.settings.cdi_spec_dirs)?.with(grant),
        };
        let devices = devices.with_nodes(volumes::devices(container, volumes)?);
        if rules == DeviceRules::Default {
            group.restrict_devices(&devices.device_rules()?)?;
        }
        let mut recipe = recipe::container(ContainerInput {
            settings: &self.settings,
            pod,
            container,
            id,
            attempt,
            image,
            layers,
            pod_ips,
            objects,
            volumes,
            env_file: &|volume, path| volumes::read_env_file(volumes, volume, path),
            cgroups: group.joins(rules),
            host_devices: if rules == DeviceRules::Unlimited { devices::of_host() } else { Vec::new() },
            seccomp: &|need| self.filters.get(need),
            beside,
            given: grant.map(|grant| &grant.envs),
            note,
        })?;
        devices.apply(&mut recipe)?;
        Ok((recipe, group))
    }

    /// One more process for a running container: as its first one was, but for the command and the terminal, whatever the pod's
    /// objects say by now. With the cgroups to join.
    pub fn exec_process(
        &self,
        sandbox: &Sandbox,
        (container, attempt, id): (&Container, u32, &str),
        argv: Vec<String>,
        tty: bool,
    ) -> Result<(Process, Vec<PathBuf>), Error> {
        let path = self.settings.process_json(sandbox.pod.uid(), &container.name, attempt);
        let first = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Process>(&bytes)?));
        let place = Place::container(&sandbox.pod, &container.name);
        let first = first.map_err(|error| place.error(file("read", &path)(error)))?;
        let mut process = Process { argv, tty, stdin: false, ..first };
        if tty && !process.env.iter().any(|v| v.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        Ok((process, sandbox.group.child(id).joins(device_rules(container))))
    }

    /// Notes a running pod's new spec for the agent's next life.
    pub fn save_pod(&self, pod: &ValidPod) -> Result<(), Error> {
        record::write(&self.settings.pod_json(pod.uid()), pod).map_err(|cause| Place::pod(pod).error(cause))
    }

    /// The spec that a pod runs with, as [`Self::make_sandbox`] or [`Self::save_pod`] noted it.
    pub fn load_pod(&self, uid: &PodUid) -> Result<ValidPod, Error> {
        record::read(&self.settings.pod_json(uid)).map_err(|cause| Place::pod(uid).error(cause))
    }

    /// Makes the folders and cgroups of containers that will be the first to start, with the numbers of these attempts, once the pod has its
    /// own: while holder and network are at work, a processor is free. What can't be made is left to the start, which will say why.
    pub fn prepare_containers<'a>(&self, pod: &ValidPod, containers: impl Iterator<Item = (&'a Container, u32)>) {
        let group = self.group(pod);
        for (container, attempt) in containers {
            let Ok(id) = new_id() else { return };
            let limits = self.container_limits(pod, container);
            let folders = self.make_container_dirs(pod, container, attempt);
            let made = folders.and_then(|()| Ok(group.child(&id).create(&limits)?));
            match made {
                Ok(()) => self.prepared.put(pod.uid(), &container.name, attempt, (id, limits)),
                Err(error) => tracing::debug!(%pod, %error, "a container's folders aren't made ahead"),
            }
        }
    }

    /// `prepared`: its folders are there, and a cgroup with these limits.
    async fn start(
        &self,
        sandbox: &Sandbox,
        input: StartInput<'_>,
        id: &str,
        prepared: Option<Limits>,
    ) -> Result<Started, Cause> {
        let mut clock = Clock::start();
        let (pod, container, attempt, volumes) = (input.pod, input.container, input.attempt, input.volumes);
        let (recipe, group) = self.recipe(sandbox, input, id)?;
        clock.step("recipe");
        if prepared.is_none() {
            self.make_container_dirs(pod, container, attempt)?;
        }
        make_sub_paths(&recipe, volumes)?;
        self.note_process(pod, container, attempt, &recipe.process)?;
        clock.step("folders");
        let limits = self.container_limits(pod, container);
        if attempt > 0 {
            // It may begin anew with more than the pod had so far. Where that isn't so, nothing changes.
            let _ = sandbox.group.apply(&self.pod_limits(pod));
        }
        if prepared.as_ref() != Some(&limits) {
            group.create(&limits)?;
        }
        clock.step("cgroup");
        let reply = sandbox.holder.start(recipe).await?;
        clock.step("holder");
        let steps = clock.with_inner(reply.steps);
        Ok(Started { id: id.into(), pid: reply.pid, started_at: reply.started_at, steps })
    }

    /// For [`Self::exec_process`]. On tmpfs, for root alone: the environment may hold secrets.
    fn note_process(&self, pod: &ValidPod, container: &Container, attempt: u32, process: &Process) -> Result<(), Cause> {
        let path = self.settings.process_json(pod.uid(), &container.name, attempt);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(std::io::Error::from);
        let written = opened.and_then(|fd| Ok(serde_json::to_writer(std::io::BufWriter::new(fs::File::from(fd)), process)?));
        written.map_err(file("write", &path))
    }

    fn make_container_dirs(&self, pod: &ValidPod, container: &Container, attempt: u32) -> Result<(), Cause> {
        let dir = self.settings.container_dir(pod.uid(), &container.name, attempt);
        // A start that failed half-way, or before a reboot, wrote here: a container begins with its image alone.
        if dir.exists() {
            super::remove::remove_tree(&dir).map_err(file("clear", &dir))?;
        }
        make_dirs(&dir, 0o755)?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            make_dir(&dir.join(name), mode)?;
        }
        let last_words = self.settings.termination_log(pod.uid(), &container.name, attempt);
        make_file(&last_words, 0o666)?;
        let logs = self.settings.container_log(pod, &container.name, attempt);
        logs.parent().map_or(Ok(()), |dir| make_dirs(dir, 0o755))
    }

    /// Gives a running container, and its pod as a whole, what they are to have now. The pod's limits bind its containers', so
    /// what grows must grow there first, and what shrinks, last.
    pub fn resize_container(&self, sandbox: &Sandbox, pod: &ValidPod, container: &Container, id: &str) -> Result<(), Error> {
        let place = Place::container(pod, &container.name);
        let group = sandbox.group.child(id);
        let limits = self.container_limits(pod, container);
        let used = group.stats().memory_bytes;
        if let Some(limit) = limits.memory.filter(|limit| *limit < used) {
            let message = format!("attempting to set container memory limit ({limit}) below current usage ({used})");
            return Err(place.error(super::error::ConfigError::new(message)));
        }
        let whole = self.pod_limits(pod);
        let _ = sandbox.group.apply(&whole);
        let told = group.apply(&limits).and_then(|()| sandbox.group.apply(&whole));
        told.map_err(|error| place.error(error))?;
        self.hold(pod).and_then(|_| self.weigh_burstable()).map_err(|error| place.error(error))
    }

    /// What a container's group gets.
    fn container_limits(&self, pod: &ValidPod, container: &Container) -> Limits {
        let bound = within(container.resources.as_ref(), pod.spec().resources.as_ref());
        Limits::container(Some(&bound), &self.rules)
    }

    /// What a pod's group gets.
    fn pod_limits(&self, pod: &ValidPod) -> Limits {
        Limits::pod(pod.spec(), &self.rules)
    }

    /// SIGKILL to every process of a container.
    pub fn kill_container(&self, sandbox: &Sandbox, id: &str) -> Result<(), Error> {
        sandbox.group.child(id).kill().map_err(|error| Place::pod(&sandbox.pod).error(error))
    }

    /// Whether the kernel killed one of its processes for want of memory. Ask before [`Self::remove_container`].
    pub fn oom_killed(&self, sandbox: &Sandbox, id: &str) -> bool {
        sandbox.group.child(id).oom_kills() > 0
    }

    /// What a container uses.
    pub fn container_stats(&self, sandbox: &Sandbox, id: &str) -> Stats {
        sandbox.group.child(id).stats()
    }

    /// What a pod uses as a whole.
    pub fn pod_stats(&self, sandbox: &Sandbox) -> Stats {
        sandbox.group.stats()
    }

    /// What a container, or (without an id) the whole pod, is for the kernel.
    pub fn inspect(&self, sandbox: &Sandbox, pid: i32, id: Option<&str>) -> Inspection {
        let group = id.map_or_else(|| sandbox.group.clone(), |id| sandbox.group.child(id));
        inspect::inspect(pid, &group.procs())
    }
}

/// Names of steps and their times.
#[derive(Debug)]
struct Clock {
    last: Instant,
    steps: Vec<Step>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    fn step(&mut self, name: &str) {
        let now = Instant::now();
        let micros = u64::try_from(now.duration_since(self.last).as_micros()).unwrap_or(u64::MAX);
        self.steps.push(Step { name: name.into(), micros });
        self.last = now;
    }

    /// The last step was made of these, and of what they leave of its time.
    fn with_inner(mut self, inner: Vec<Step>) -> Vec<Step> {
        let within = inner.iter().map(|step| step.micros).sum();
        if let Some(outer) = self.steps.last_mut() {
            outer.micros = outer.micros.saturating_sub(within);
        }
        self.steps.extend(inner);
        self.steps
    }
}

fn new_id() -> Result<String, Cause> {
    random::hex::<32>().map_err(file("read", Path::new("random numbers")))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Cause> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(file("make", path)(error.into())),
    }
}

/// With its parents: one mkdir, when they are there.
fn make_dirs(path: &Path, mode: u32) -> Result<(), Cause> {
    match (rustix::fs::mkdir(path, Mode::from_raw_mode(mode)), path.parent()) {
        (Err(rustix::io::Errno::NOENT), Some(parent)) => {
            make_dirs(parent, mode)?;
            make_dir(path, mode)
        }
        (Ok(()) | Err(rustix::io::Errno::EXIST), _) => Ok(()),
        (Err(error), _) => Err(file("make", path)(error.into())),
    }
}

fn make_file(path: &Path, mode: u32) -> Result<(), Cause> {
    let mode = Mode::from_raw_mode(mode);
    let made = rustix::fs::open(path, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode)
        .and_then(|file| rustix::fs::fchmod(&file, mode));
    made.map_err(|e| file("make", path)(e.into()))
}

/// The folders of subPaths that aren't there yet. Where a volume's own word is wanted, such as a Secret's key, nothing is made.
fn make_sub_paths(recipe: &Recipe, volumes: &Volumes) -> Result<(), Cause> {
    for mount in &recipe.mounts {
        if let Source::Bind { path, beneath, .. } = &mount.source
            && !beneath.as_os_str().is_empty()
            && volumes.values().any(|volume| volume.path == *path && !volume.read_only)
            && path.is_dir()
        {
            volumes::make_beneath(path, beneath)?;
        }
    }
    Ok(())
}

fn device_rules(container: &Container) -> DeviceRules {
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
    if privileged { DeviceRules::Unlimited } else { DeviceRules::Default }
}

/// For tasks that share it.
pub type SharedRuntime = Arc<Runtime>;
