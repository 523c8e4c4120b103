//! What is measured, whoever runs the pods.

use std::path::Path;
use std::time::Duration;

/// One of the two that run pods.
pub trait Side {
    /// `us` or `podman`.
    fn name(&self) -> &'static str;
    /// Has these pods made real, and returns how long it took until the last command ran: from when the file was there (us), or
    /// from when `podman kube play` was started, to the time that the last container printed. That is the measure, not when
    /// somebody looked.
    fn start(&mut self, pods: &Pods) -> Duration;
    /// Takes them away; returns how long it took until nothing was left.
    fn stop(&mut self, pods: &Pods) -> Duration;
    /// Bytes (PSS) of all processes that pods need beside the user's own, the agent not counted.
    fn memory_beside(&self) -> u64;
    /// Processor time that all of its processes have used so far, the user's not counted.
    fn processor(&self) -> Duration;
    /// Gets and unpacks an image, such as `library/debian:12`, when nothing of it is there.
    fn pull(&mut self, image: &str) -> Duration;
    /// How long a container needs to be rid of so many bytes, by its own clock.
    fn output(&mut self, bytes: usize) -> Duration;
    /// The user's command for a program in the first container of the first of these pods, from start to end.
    fn exec(&mut self, pods: &Pods, words: &[&str]) -> Duration;
}

/// Like pods, in one file.
#[derive(Debug, Clone)]
pub struct Pods {
    /// Their names are NAME-0, NAME-1 …
    pub name: &'static str,
    pub count: usize,
    /// In each of them.
    pub containers: usize,
}

impl Pods {
    pub fn new(name: &'static str, count: usize, containers: usize) -> Self {
        Self { name, count, containers }
    }

    pub fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    /// How many commands are to run.
    pub fn commands(&self) -> usize {
        self.count * self.containers
    }

    /// Each container's program prints when it began.
    pub fn yaml(&self) -> String {
        let one = |number: usize| {
            let pod = e2e::pod(&format!("{}-{number}", self.name));
            let container = |pod: e2e::Manifest, index| pod.runs_with(&format!("c{index}"), "stamp", "imagePullPolicy: Never");
            (0..self.containers).fold(pod, container).yaml()
        };
        (0..self.count).map(one).collect::<Vec<_>>().join("---\n")
    }
}

/// A pod that writes so many bytes, and last how long it took.
pub fn wordy(bytes: usize) -> e2e::Manifest {
    e2e::pod("wordy").spec("restartPolicy: Never").runs_with("c0", &format!("spam {bytes} timed"), "imagePullPolicy: Never")
}

/// What such a pod's last line says, as it is or behind time, stream and tag; nothing while it isn't there as a whole.
pub fn wordy_took(end: &str) -> Option<Duration> {
    let words: Vec<&str> = end.strip_suffix('\n')?.lines().last()?.split(' ').collect();
    let number = [1, 4].contains(&words.len()).then(|| words.last()).flatten()?;
    number.parse().map(Duration::from_nanos).ok()
}

/// Unix time in nanoseconds.
pub fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970").as_nanos()
}

/// What a container printed when it began. Both sides log in CRI's format: time, stream, tag, text.
pub fn stamp(log: &Path) -> Option<u128> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().next()?.split(' ').nth(3)?.parse().ok()
}

/// From then to the latest of the stamps.
pub fn until_last(then: u128, stamps: &[u128]) -> Duration {
    let last = stamps.iter().max().expect("pods have containers");
    Duration::from_nanos(last.saturating_sub(then) as u64)
}

/// All that is in a folder; nothing if it isn't there.
pub fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
