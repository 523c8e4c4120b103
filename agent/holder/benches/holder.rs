//! What a holder costs: its memory, the time of a start, how fast it writes logs. Numbers to read, no pass or fail:
//! `cargo bench -p podholder`, or with `PODHOLDER=/path/to/podholder` of any other build. As root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use podholder::protocol::{LogFile, Recipe, Reply, Request, Step};
use support::{Pod, bind};

/// Of the file that the writer copies to its standard output, and how often it does.
const FILE_SIZE: usize = 64 << 20;
const REPEATS: usize = 8;
const STARTS: u32 = 50;

fn main() {
    memory();
    starts();
    println!("log throughput of one pod, {} MiB a run:", (FILE_SIZE * REPEATS) >> 20);
    for length in [20, 100, 1_000, 100_000] {
        throughput(length, 1);
    }
    throughput(100, 2);
}

/// KiB of PSS and of private memory.
fn resident(pid: i32) -> String {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |name: &str| -> u64 {
        let fields = rollup.lines().filter_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        fields.sum()
    };
    format!("PSS {:>4} KiB, private {:>4} KiB", of("Pss:"), of("Private_Clean:") + of("Private_Dirty:"))
}

fn memory() {
    // Several, as on a node: they share the program's pages.
    let mut pods: Vec<Pod> = (0..10).map(|_| Pod::new()).collect();
    println!("one of ten holders, idle:             {}", resident(pods[0].pid));
    for pod in &mut pods {
        for name in ["one", "two"] {
            let recipe = pod.recipe(name, &["sleep", "1000"]);
            pod.start(&recipe).unwrap();
        }
    }
    println!("with two containers:                  {}", resident(pods[0].pid));
    pods[0].sh("seq 1 1000000");
    println!("after a flood of a container's lines: {}", resident(pods[0].pid));
}

fn starts() {
    let mut pod = Pod::new();
    println!("sandbox: {}", steps(&pod.steps));
    let mut times = Vec::new();
    let mut last = Vec::new();
    for n in 0..STARTS {
        let recipe = pod.recipe(&format!("c{n}"), &["sleep", "1000"]);
        let begin = Instant::now();
        let (Reply::Started { steps, .. }, _) = pod.call(Request::Start(Box::new(recipe))).unwrap() else { panic!() };
        times.push(begin.elapsed());
        last = steps;
    }
    times.sort();
    let percentile = |n: usize| times[times.len() * n / 100];
    println!("start of a container: median {:?}, 90 %: {:?}, least {:?}", percentile(50), percentile(90), times[0]);
    println!("  the last one: {}", steps(&last));
}

fn steps(steps: &[Step]) -> String {
    steps.iter().map(|s| format!("{} {} µs", s.name, s.micros)).collect::<Vec<_>>().join(", ")
}

/// User and system time of a process.
fn cpu(pid: i32) -> [Duration; 2] {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let millis = |field: usize| fields[field].parse::<u64>().unwrap() * 1000 / rustix::param::clock_ticks_per_second();
    [11, 12].map(|field| Duration::from_millis(millis(field)))
}

fn throughput(length: usize, writers: usize) {
    let mut pod = Pod::new();
    let line = [vec![b'x'; length - 1], vec![b'\n']].concat();
    let text: Vec<u8> = line.iter().copied().cycle().take(FILE_SIZE / length * length).collect();
    // In memory, and a disk of memory for the log, rotated: neither is what is measured.
    let disk = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    std::fs::write(disk.path().join("text"), &text).unwrap();
    let recipes: Vec<Recipe> = (0..writers).map(|n| writer(&mut pod, disk.path(), n)).collect();
    let begin = Instant::now();
    for recipe in &recipes {
        pod.start(recipe).unwrap();
    }
    for recipe in &recipes {
        assert_eq!(pod.exit_of(&recipe.id).code, 0);
    }
    let (took, [user, system]) = (begin.elapsed(), cpu(pod.pid));
    let megabytes = (text.len() * REPEATS * writers) as f64 / 1e6;
    println!(
        "  lines of {length} bytes, {writers} container(s): {:.0} MB/s; {:.0} MB a second of the holder's CPU time ({user:?} + {system:?} of the kernel's)",
        megabytes / took.as_secs_f64(),
        megabytes / (user + system).as_secs_f64()
    );
}

fn writer(pod: &mut Pod, disk: &Path, number: usize) -> Recipe {
    let mut recipe = pod.recipe("writer", &["cat"]);
    recipe.process.argv.extend(std::iter::repeat_n("/text".to_owned(), REPEATS));
    recipe.mounts.push(bind(&disk.join("text"), "/text"));
    recipe.log =
        Some(LogFile { path: disk.join(format!("{number}.log")), max_size: 10 << 20, max_files: 2, ..LogFile::default() });
    recipe
}
