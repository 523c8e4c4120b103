//! The folder of manifests as people and programs really treat it: whatever happens there, good pods run on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;

use e2e::{NodeBox, Pod, assert_eventually, eventually, pod, run};

/// A pod that a label tells from its other versions.
fn version(name: &str, label: &str) -> String {
    pod(name).metadata(&format!("labels: {{version: {label}}}")).runs("main", "sleep").yaml()
}

#[track_caller]
fn has_version(pod: &Pod<'_>, label: &str) {
    pod.until(&format!("has version {label}"), |object| {
        let labels = &object["metadata"]["labels"];
        if labels["version"] == label { Ok(()) } else { Err(labels.to_string()) }
    });
}

#[test]
fn a_file_that_is_being_written_is_read_when_it_is_whole() {
    let node = NodeBox::start();
    let text = version("slow", "one");
    let mut file = File::create(node.manifests().join("slow.yaml")).unwrap();
    let (first, rest) = text.split_at(text.len() / 2);
    file.write_all(first.as_bytes()).unwrap();
    file.sync_all().unwrap();
    // What comes after it in the folder has been seen: so the half was seen as well, and left alone.
    node.put(&pod("other").runs("main", "sleep")).is_ready();
    assert!(node.pod("slow").get().is_none());
    assert!(!node.events().iter().any(|event| event.contains("slow.yaml")), "{:#?}", node.events());
    file.write_all(rest.as_bytes()).unwrap();
    drop(file);
    node.pod("slow").is_ready();
}

#[test]
fn a_file_that_goes_wrong_keeps_its_last_good_pods() {
    let node = NodeBox::start();
    node.apply("web.yaml", &version("web", "one"));
    let web = node.pod("web");
    web.is_ready();
    let id = web.container("main").id();
    for (wrong, place) in [
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web", "web.yaml:4:1"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  contaners: []\n", "web.yaml:5:3"),
        // What `>` of a shell leaves until its program writes.
        ("", "the file is empty"),
    ] {
        fs::write(node.manifests().join("web.yaml"), wrong).unwrap();
        node.tells(&["InvalidManifest", place]);
        web.container("main").is_running();
        assert_eq!(web.container("main").id(), id);
    }
    node.apply("web.yaml", &version("web", "two"));
    has_version(&web, "two");
    web.is_ready();
}

#[test]
fn an_error_says_file_line_column_field_and_what_would_be_right() {
    let node = NodeBox::start();
    let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: wrong}\nspec:\n  containers:\n";
    let cases = [
        ("field.yaml", format!("{head}  - {{name: a, imag: b}}\n"), ["field.yaml:6:15", "image"]),
        ("type.yaml", format!("{head}  - {{name: a, image: b, tty: perhaps}}\n"), ["type.yaml:6:", "tty"]),
        ("kind.yaml", "apiVersion: v1\nkind: Pot\n".into(), ["kind.yaml:2:1", "Pod"]),
        ("tab.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: tab\n".into(), ["tab.yaml:4:", "tab"]),
        ("duplicate.yaml", "apiVersion: v1\nkind: Pod\nkind: Pod\n".into(), ["duplicate.yaml:3:1", "kind"]),
        ("twice.yaml", format!("{head}  - {{name: a, image: b}}\n  - {{name: a, image: b}}\n"), ["twice.yaml:7:6", "name"]),
        (
            "name.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: No_Name}\nspec: {containers: [{name: a, image: b}]}\n".into(),
            ["name.yaml:3:", "lower"],
        ),
        ("prose.yaml", "Dear Sirs, please run nginx.\n".into(), ["prose.yaml:1:1", "map"]),
    ];
    for (file, text, _) in &cases {
        node.apply(file, text);
    }
    for (_, _, [place, words]) in &cases {
        node.tells(&["InvalidManifest", place, words]);
    }
    node.put(&pod("good").runs("main", "sleep")).is_ready();
    // The same words by the command line, with a status that scripts can use.
    let path = node.manifests().join("field.yaml");
    assert!(node.run(&["validate", path.to_str().unwrap()]).fails().contains("field.yaml:6:15"));
    node.run(&["validate", node.manifests().join("good.yaml").to_str().unwrap()]).ok();
}

#[test]
fn monsters_are_refused_and_good_pods_run() {
    let node = NodeBox::start();
    let laughs = (1..=9).fold(String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n"), |text, level| {
        let below = format!("*a{}", level - 1);
        text + &format!("a{level}: &a{level} [{}]\n", vec![below; 9].join(", "))
    });
    let cases: [(&str, Vec<u8>); 7] = [
        ("laughs.yaml", format!("apiVersion: v1\nkind: Pod\n{laughs}").into_bytes()),
        ("deep.yaml", "[".repeat(100_000).into_bytes()),
        ("documents.yaml", "---\nkind: None\n".repeat(100_000).into_bytes()),
        ("large.yaml", format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {}}}\n", "x".repeat(10 << 20)).into_bytes()),
        ("binary.yaml", vec![0xff, 0xfe, 0, 1, 2, 3]),
        ("zeros.yaml", vec![0; 4096]),
        ("huge.yaml", vec![b'#'; (64 << 20) + 1]),
    ];
    for (file, bytes) in &cases {
        fs::write(node.manifests().join(file), bytes).unwrap();
    }
    for (file, _) in &cases {
        node.tells(&["InvalidManifest", file]);
    }
    node.put(&pod("good").runs("main", "sleep")).is_ready();
    // What is told stays readable, too.
    let told: usize = node.events().iter().map(String::len).sum();
    assert!(told < 1 << 20, "{told} bytes of events");
}

#[test]
fn large_and_odd_but_right_is_right() {
    let node = NodeBox::start();
    let many: Vec<String> = (0..20).map(|number| version(&format!("many-{number}"), "one")).collect();
    node.apply("many.yaml", &many.join("---\n"));
    let list = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{}]}}",
        ["listed-0", "listed-1"].map(|name| format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\"}}, \"spec\": {{\"containers\": \
             [{{\"name\": \"main\", \"image\": \"{}\", \"args\": [\"sleep\"]}}]}}}}",
            e2e::DEMO
        ))
        .join(", ")
    );
    node.apply("list.json", &list);
    node.apply("bom.yml", &format!("\u{feff}{}", version("bom", "one")));
    node.apply("crlf.yaml", &version("crlf", "one").replace('\n', "\r\n"));
    node.apply("comment.yaml", &format!("{}{}", "# a long comment\n".repeat(600_000), version("comment", "one")));
    // A document that is wrong beside one that is right: the file is told, the right one runs.
    node.apply("half.yaml", &format!("{}---\nkind: Nothing\n", version("half", "one")));
    node.apply("notes.txt", "not a manifest");
    for name in ["many-0", "many-19", "listed-0", "listed-1", "bom", "crlf", "comment", "half"] {
        node.pod(name).becomes("Running");
    }
    node.tells(&["InvalidManifest", "half.yaml"]);
    assert!(!node.events().iter().any(|event| event.contains("notes.txt")));
}

#[test]
fn edits_reach_the_pod_in_every_way_that_editors_know() {
    let node = NodeBox::start();
    let file = node.manifests().join("web.yaml");
    node.apply("web.yaml", &version("web", "renamed-over"));
    let web = node.pod("web");
    web.is_ready();
    let id = web.container("main").id();

    fs::write(&file, version("web", "in-place")).unwrap();
    has_version(&web, "in-place");
    fs::remove_file(&file).and_then(|()| fs::write(&file, version("web", "removed-and-made"))).unwrap();
    has_version(&web, "removed-and-made");
    web.is_ready();
    // Taken out of the folder and put back in at once: at the latest by now it may be another run of the pod.
    let id = if web.container("main").id() == id { id } else { web.container("main").id() };
    fs::rename(&file, node.manifests().join("other-name.yaml")).unwrap();
    node.put(&pod("marker").runs("main", "sleep")).is_ready();
    assert_eq!(web.container("main").id(), id, "a file's new name changes nothing");
    fs::rename(node.manifests().join("other-name.yaml"), node.folder().join("away.yaml")).unwrap();
    web.is_gone();
    fs::rename(node.folder().join("away.yaml"), &file).unwrap();
    web.is_ready();
}

#[test]
fn a_mounted_configmap_is_swapped_by_its_link() {
    let node = NodeBox::start();
    let folder = node.manifests();
    let make = |dir: &str, label: &str| {
        fs::create_dir(folder.join(dir)).unwrap();
        fs::write(folder.join(dir).join("web.yaml"), version("web", label)).unwrap();
    };
    make("..2026_01", "one");
    symlink("..2026_01", folder.join("..data")).unwrap();
    symlink("..data/web.yaml", folder.join("web.yaml")).unwrap();
    let web = node.pod("web");
    web.is_ready();
    let id = web.container("main").id();
    for (next, label) in [("..2026_02", "two"), ("..2026_03", "three")] {
        make(next, label);
        symlink(next, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        has_version(&web, label);
    }
    assert_eq!(web.container("main").id(), id);
}

#[test]
fn what_cannot_be_read_is_told_and_nothing_waits_for_it() {
    let node = NodeBox::start();
    let folder = node.manifests();
    symlink("nowhere.yaml", folder.join("dangling.yaml")).unwrap();
    symlink("loop.yaml", folder.join("loop.yaml")).unwrap();
    // Opens, and can't be read: as on a disk that is broken.
    symlink("/proc/self/mem", folder.join("broken.yaml")).unwrap();
    // May be written, not read, whoever asks.
    symlink("/proc/sys/vm/compact_memory", folder.join("denied.yaml")).unwrap();
    run(node.command("mkfifo").arg(folder.join("pipe.yaml"))).ok();
    let _listener = std::os::unix::net::UnixListener::bind(folder.join("socket.yaml")).unwrap();
    symlink("/dev/zero", folder.join("device.yaml")).unwrap();
    // A folder may have any name.
    fs::create_dir(folder.join("folder.yaml")).unwrap();
    fs::write(folder.join("folder.yaml/inner.yaml"), version("inner", "one")).unwrap();
    node.put(&pod("good").runs("main", "sleep")).is_ready();
    node.pod("inner").is_ready();
    for (file, why) in [
        ("dangling.yaml", "No such file"),
        ("loop.yaml", "symbolic links"),
        ("broken.yaml", "Input/output error"),
        ("denied.yaml", "Permission denied"),
        ("pipe.yaml", "neither a folder nor a file"),
        ("socket.yaml", "neither a folder nor a file"),
        ("device.yaml", "neither a folder nor a file"),
    ] {
        node.tells(&["InvalidManifest", file, why]);
    }
    // A pipe that makes way for a file is one no more.
    node.apply("pipe.yaml", &version("after-the-pipe", "one"));
    node.pod("after-the-pipe").is_ready();
    // The link's target appears.
    fs::write(node.folder().join("late.yaml"), version("late", "one")).unwrap();
    fs::remove_file(folder.join("dangling.yaml")).unwrap();
    symlink(node.folder().join("late.yaml"), folder.join("dangling.yaml")).unwrap();
    node.pod("late").is_ready();
}

/// root reads all, but not without the capabilities that say so: as on a network's disk that knows no root.
#[test]
fn what_may_not_be_read_is_told_by_its_name() {
    let node = NodeBox::builder().without_agent().start();
    node.apply("others.yaml", &version("others", "one"));
    node.apply("shut/inner.yaml", &version("inner", "one"));
    let (file, shut) = (node.manifests().join("others.yaml"), node.manifests().join("shut"));
    for (path, mode) in [(&file, 0o600), (&shut, 0o700)] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let agent = e2e::binary("nodeagent");
    for path in [&file, &shut] {
        let (agent, path) = (agent.to_str().unwrap(), path.to_str().unwrap());
        node.inside(agent, &["validate", path]).ok();
        let told = node.inside("setpriv", &["--bounding-set=-dac_override,-dac_read_search", agent, "validate", path]).fails();
        assert!(told.contains(path) && told.contains("Permission denied"), "{told}");
    }
}

#[test]
fn a_folder_that_comes_goes_and_comes_again() {
    let node = NodeBox::builder().without_agent().start();
    fs::remove_dir(node.manifests()).unwrap();
    node.start_agent();
    node.tells(&["manifests"]);
    fs::create_dir(node.manifests()).unwrap();
    let web = node.put(&pod("web").runs("main", "sleep"));
    web.is_ready();
    fs::remove_dir_all(node.manifests()).unwrap();
    web.is_gone();
    fs::create_dir(node.manifests()).unwrap();
    node.put(&pod("web").runs("main", "sleep")).is_ready();
    // Swapped as a whole, as deployments do.
    let next = node.folder().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("new.yaml"), version("new", "one")).unwrap();
    fs::rename(node.manifests(), node.folder().join("before")).unwrap();
    fs::rename(&next, node.manifests()).unwrap();
    node.pod("new").is_ready();
    web.is_gone();
}

#[test]
fn two_files_with_one_pod_are_one_pod_and_an_error() {
    let node = NodeBox::start();
    node.apply("first.yaml", &version("web", "first"));
    let web = node.pod("web");
    web.is_ready();
    node.apply("second.yaml", &version("web", "second"));
    node.tells(&["InvalidManifest", "second.yaml", "first.yaml"]);
    has_version(&web, "first");
    node.remove("first.yaml");
    has_version(&web, "second");
}

#[test]
fn standard_input_is_a_source() {
    let node = NodeBox::builder().without_agent().start();
    let text = [version("one", "a"), version("two", "b")].join("---\n");
    node.start_agent_with(node.agent_command_on("-"), &text);
    node.pod("one").is_ready();
    node.pod("two").is_ready();
    let id = node.pod("one").container("main").id();
    node.kill_agent();
    node.start_agent_with(node.agent_command_on("-"), &version("one", "c"));
    has_version(&node.pod("one"), "c");
    node.pod("two").is_gone();
    assert_eq!(node.pod("one").container("main").id(), id);
}

#[test]
fn hundreds_of_files_at_once_are_all_seen() {
    let node = NodeBox::start();
    // Bare files without a pod are cheap; every fiftieth has one.
    for number in 0..1000 {
        let text = if number % 50 == 0 { version(&format!("p-{number}"), "one") } else { "# nothing\n".into() };
        fs::write(node.manifests().join(format!("{number}.yaml")), text).unwrap();
    }
    for number in (0..1000).step_by(50) {
        node.pod(&format!("p-{number}")).becomes("Running");
    }
    for number in 0..1000 {
        fs::remove_file(node.manifests().join(format!("{number}.yaml"))).unwrap();
    }
    assert_eventually!(!node.run(&["get", "pods", "--no-headers"]).ok().contains("p-"), "all pods are gone");
    eventually("no process is left", || {
        let left = node.snapshot().facts("process").join("\n");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn more_changes_than_the_kernel_remembers_are_not_lost() {
    let node = NodeBox::start();
    node.apply("edited.yaml", &version("edited", "one"));
    node.apply("removed.yaml", &version("removed", "one"));
    node.pod("edited").is_ready();
    node.pod("removed").is_ready();
    let agent = node.agent_pid().to_string();
    let tell = |signal: &str| run(std::process::Command::new("kill").args([signal, &agent])).ok();
    tell("-STOP");
    // An agent that can't look: the kernel keeps so many events for it and drops the rest.
    let room: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let noise = ["noise-a", "noise-b"].map(|name| node.manifests().join(name));
    for number in 0..room / 2 {
        File::create(&noise[number % 2]).unwrap();
        fs::remove_file(&noise[number % 2]).unwrap();
    }
    node.apply("new.yaml", &version("new", "one"));
    node.apply("edited.yaml", &version("edited", "two"));
    node.remove("removed.yaml");
    tell("-CONT");
    node.pod("new").is_ready();
    has_version(&node.pod("edited"), "two");
    node.pod("removed").is_gone();
}
