//! Whole sessions, compared with `sessions/*.txt`.

use crate::{
    fake::Fake,
    session_text::{compare, run, session},
};

#[test]
fn instances_from_the_first_to_the_last() {
    let fake = Fake::start();
    compare(
        "instances",
        &session(
            &fake,
            &[
                "run -d --name web -p 8080:80 -l tier=front debian:12 say hi",
                "run --rm busybox say hello from inside",
                "run --rm -d busybox say x",
                "launch debian:12 --name box --memory 2G --cpus 2",
                "launch stillborn --name never",
                "rm never",
                "ls",
                "ls -o wide --no-headers",
                "ls -q",
                "ls --filter status=running --filter name=w* -o name",
                "ls --filter label=tier",
                "ls --filter colour=red",
                "show web",
                "show web -o yaml",
                "show web --cpu-stats",
                "show web --cpu-stats -o wide",
                "show web --cpu-stats -o json",
                "exec web say inside",
                "logs web --tail 1",
                "top web",
                "set web memory=1G --pids 50 -l tier=back",
                "set web cpus=many",
                "set web",
                "stop web",
                "start web box",
                "pause web",
                "resume web",
                "restart web",
                "kill -s HUP web",
                "rm web",
                "rm -f web box wbe",
                "ls",
            ],
        ),
    );
}

#[test]
fn the_rest_of_the_nouns() {
    let fake = Fake::start();
    compare(
        "nouns",
        &session(
            &fake,
            &[
                "image list",
                "images ls -o name",
                "image show debian:12",
                "image pull nginx",
                "image df",
                "image rm debain:12",
                "image rm debian:12",
                "network ls",
                "network show back",
                "volume create --size 1G data",
                "volume ls",
                "volume rm date",
                "volume rm data",
                "token create ci --scope operate",
                "login",
                "login -u alice --password-stdin docker.io",
                "login docker.io",
                "logout depot.example:5000",
                "events --since 0 --no-follow --filter type=instance.*",
                "events --since 0 --no-follow -o json",
                "info",
                "version",
                "version -o json",
                "op watch op-1",
            ],
        ),
    );
}

#[test]
fn mistakes_are_explained() {
    let fake = Fake::start();
    fake.instance("web", "running");
    fake.instance("idle", "stopped");
    compare(
        "mistakes",
        &session(
            &fake,
            &[
                "lst",
                "run",
                "run -p eighty:80 debian",
                "run -v data debian",
                "run --memory lots debian",
                "run -it debian",
                "run --name web debian",
                "run missing",
                "run --pull never nginx",
                "run --rm debian absent",
                "show wbe",
                "show nothing-like-it",
                "exec idle say x",
                "exec forbidden say x",
                "stop late",
                "stop broken",
                "wait idle --for running --timeout 1s",
                "--host http://example.org ls",
                "--host unix:///nonexistent/sock run debian",
                "cp a b",
                "cp web:/nothing .",
                "cp wbe:/etc .",
                "help nonsense",
                "help exit-codes",
            ],
        ),
    );
}

#[test]
fn what_takes_long_is_shown() {
    let fake = Fake::start();
    compare(
        "progress",
        &session(
            &fake,
            &[
                "run --name s --rm slow say made",
                "run --name d doomed say never",
                "-q run --name t --rm slow say quiet",
            ],
        ),
    );
}

#[test]
fn only_what_changed_is_sent_from_an_editor() {
    let fake = Fake::start();
    fake.instance("web", "running");
    let edit = |script: &str| {
        let mut command = crate::session_text::berth(&fake, &["edit", "web"]);
        command.env("EDITOR", script).output().unwrap()
    };
    let changed = edit("sed -i '$ a memory: 1G'");
    assert!(changed.status.success(), "{changed:?}");
    let world = fake.world.lock().unwrap();
    assert_eq!(world.instances["web"]["spec"]["memory"], "1G");
    assert_eq!(world.matched, [Some("\"1\"".to_owned())]);
    drop(world);

    let same = edit("true");
    assert!(String::from_utf8_lossy(&same.stderr).contains("Nothing changed."));

    let wrong = edit("sed -i '$ a memroy: 1G'");
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(said.contains("memroy"), "{said}");
    let kept = said.rsplit(' ').next().unwrap().trim();
    assert!(
        std::fs::read_to_string(kept)
            .unwrap()
            .contains("memroy: 1G")
    );
    std::fs::remove_file(kept).unwrap();

    let refused = edit("false");
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn files_go_in_and_come_out() {
    let fake = Fake::start();
    fake.instance("web", "running");
    let home = fake.home();
    let out = run(&fake, &["cp", "web:/etc", "copy"], "");
    assert!(out.status.success(), "{out:?}");
    let read = |path: &str| std::fs::read_to_string(home.join(path)).unwrap();
    assert_eq!(read("copy/hostname"), "inside\n");
    // The target is there now: into it, under its own name.
    assert!(run(&fake, &["cp", "web:/etc", "copy"], "").status.success());
    assert_eq!(read("copy/etc/hostname"), "inside\n");
    let piped = run(&fake, &["cp", "web:/etc", "-"], "");
    let names: Vec<_> = tar::Archive::new(&piped.stdout[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["etc/", "etc/hostname"]);

    assert!(run(&fake, &["cp", "copy", "web:/etc"], "").status.success());
    assert!(
        run(&fake, &["cp", "copy/hostname", "web:/srv/name"], "")
            .status
            .success()
    );
    let world = fake.world.lock().unwrap();
    let received: Vec<(String, Vec<String>)> = world
        .received
        .iter()
        .map(|(path, bytes)| {
            let mut archive = tar::Archive::new(&bytes[..]);
            let paths = archive
                .entries()
                .unwrap()
                .map(|e| e.unwrap().path().unwrap().display().to_string());
            let mut paths: Vec<_> = paths.collect();
            paths.sort();
            (path.clone(), paths)
        })
        .collect();
    assert_eq!(received[0].0, "/etc");
    assert_eq!(
        received[0].1,
        ["copy/", "copy/etc/", "copy/etc/hostname", "copy/hostname"]
    );
    assert_eq!(received[1], ("/srv/".to_owned(), vec!["name".to_owned()]));
}

#[test]
fn watching_prints_what_changed() {
    let fake = Fake::start();
    fake.instance("web", "running");
    // The fake's stream of events ends after two; the list is printed before.
    let watched = run(&fake, &["ls", "-w", "-o", "json"], "");
    let text = String::from_utf8(watched.stdout).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["name"], "web");
    assert_eq!(text.lines().count(), 1, "nothing changed after: {text}");
}
