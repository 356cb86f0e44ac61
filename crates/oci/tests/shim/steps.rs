//! Death at every step: whoever makes and runs the container (the launcher, the shim, the container's first
//! process, the one of an exec) is killed at each system call that changes something others can see. Between
//! two of them the world is the same, so these are all the moments there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use container::shim::client::Client;
use container::shim::protocol::{Exec, Request};
use container::shim::{cleanup, holder};

use crate::world::{Wish, World, wait_until};

/// Calls that change something others can see: files, processes, mounts in use, sockets.
const CALLS: &str = "mkdir,mkdirat,rmdir,unlink,unlinkat,rename,write,ftruncate,fsync,clone,clone3,fork,\
    execve,setsid,setns,move_mount,pivot_root,umount2,mknodat,symlinkat,bind,listen,accept4,connect,\
    sendto,sendmsg,pidfd_send_signal,wait4,waitid";

/// Launches the shim under strace(1), which notes its calls in `out` and does what else `options` say.
fn launch(world: &World, out: &Path, options: &[&str]) -> std::process::Child {
    Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-s",
            "0",
            "-e",
            &format!("trace={CALLS}"),
            "-o",
        ])
        .arg(out)
        .args(options)
        .args([env!("CARGO_BIN_EXE_berth-oci"), "shim", "--dir"])
        .arg(world.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// How often the process that makes a call most often makes it.
fn counts(calls: &str) -> BTreeMap<String, u32> {
    let mut of_each: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in calls.lines() {
        let mut words = line.split_whitespace();
        if let (Some(pid), Some(call)) = (words.next(), words.next())
            && let Some((name, _)) = call.split_once('(')
        {
            *of_each.entry((pid, name)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for ((_, name), count) in of_each {
        let most = most.entry(name.to_owned()).or_default();
        *most = count.max(*most);
    }
    most
}

/// Lets the shim run under `options` and be used; kills what still lives.
fn live(world: &World, out: &Path, options: &[&str]) {
    let dir = world.dir();
    let mut tracer = launch(world, out, options);
    wait_until("it listens, or all are dead", || {
        dir.join("shim.sock").exists() || tracer.try_wait().unwrap().is_some()
    });
    use_it(world);
    if let Some(shim) = holder(&dir).unwrap() {
        // SAFETY: the shim of this test, by the id that its lock states.
        unsafe { libc::kill(shim, libc::SIGKILL) };
    }
    wait_until("all are dead", || tracer.try_wait().unwrap().is_some());
    wait_until("the shim is gone", || holder(&dir).unwrap().is_none());
}

/// Starts the container and runs another program in it, as far as the shim lives.
fn use_it(world: &World) {
    let Ok(mut client) = Client::connect(&world.dir()) else {
        return;
    };
    let _ = client.set_timeout(Some(Duration::from_secs(10)));
    if client.command(&Request::Start).is_err() {
        return;
    }
    let _ = client.exec(Exec {
        process: serde_json::json!({ "args": ["sh", "-c", "echo inside"] }),
        stdin: false,
        detach: false,
    });
    let _ = client.follow(|_, _| {});
}

#[test]
fn death_at_every_step_leaves_nothing_that_cleanup_does_not_remove() {
    let test = "death_at_every_step";
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIP {test}: strace is not installed");
        return;
    }
    let Some(mut world) = World::new("steps", "sleep 1000", Wish::default()) else {
        return;
    };
    let out = world.root.path().join("calls");
    live(&world, &out, &[]);
    cleanup(&world.dir()).unwrap();
    world.assert_clean();
    let counts = counts(&std::fs::read_to_string(&out).unwrap());
    for call in ["clone3", "mkdir", "rename", "move_mount", "sendto"] {
        assert!(counts.contains_key(call), "{call} is not seen: {counts:?}");
    }
    for (call, count) in counts {
        for when in 1..=count {
            let inject = format!("inject={call}:signal=SIGKILL:when={when}");
            live(&world, Path::new("/dev/null"), &["-e", &inject]);
            cleanup(&world.dir()).unwrap_or_else(|error| panic!("{call} {when}: {error}"));
            world.assert_clean();
        }
    }
    world.launch();
}
