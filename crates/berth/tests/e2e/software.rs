//! Real software of Debian, served over the network by name and by published port.

use std::path::Path;

use testkit::Daemon;

use crate::common::{BERTH, cache, until, until_so};

const PACKAGES: &str = "nginx-light,postgresql,redis-server";

/// A daemon with `busybox` and `services`, a Debian with an init and [`PACKAGES`].
fn debian(test: &str) -> Option<Daemon> {
    if testkit::lacks(
        test,
        &["ip", "nft", "nsenter", "busybox", "mmdebstrap", "curl"],
    ) {
        return None;
    }
    let made = testkit::images(Path::new(BERTH), &cache(), "debian", |daemon| {
        daemon.berth(&["image", "build", "--recipe", "busybox"])?;
        let words = [
            "image", "build", "--recipe", "debian", "--system", "--name", "services",
        ];
        daemon.berth(&[&words[..], &["--package", PACKAGES]].concat())?;
        Ok(())
    });
    let images = match made {
        Ok(images) => images,
        Err(error) => {
            testkit::skip(test, &format!("no Debian can be made here: {error:#}"));
            return None;
        }
    };
    let mut daemon = Daemon::new(Path::new(BERTH), &[]).unwrap();
    daemon.lend_images(&images).unwrap();
    daemon.restart().unwrap();
    Some(daemon)
}

#[test]
fn a_debian_system_comes_up_with_its_services() {
    let Some(daemon) = debian("a_debian_system_comes_up") else {
        return;
    };
    daemon
        .berth(&["launch", "--name", "box", "services"])
        .unwrap();
    // `degraded` means that units failed, which are told below.
    until("systemd has started all", || {
        let asked = daemon
            .run(&["exec", "box", "systemctl", "is-system-running"])
            .unwrap();
        ["running", "degraded"]
            .contains(&asked.out.trim())
            .then_some(())
    });
    let failed = daemon.berth(&[
        "exec",
        "box",
        "systemctl",
        "--failed",
        "--no-legend",
        "--plain",
    ]);
    assert_eq!(failed.unwrap(), "");
    for unit in ["nginx", "postgresql", "redis-server"] {
        let active = daemon
            .run(&["exec", "box", "systemctl", "is-active", unit])
            .unwrap();
        let why = || {
            daemon
                .run(&["exec", "box", "systemctl", "status", "--no-pager", unit])
                .unwrap()
        };
        assert_eq!(active.out, "active\n", "{:?}", why());
    }
    let page = daemon
        .berth(&["run", "--rm", "busybox", "wget", "-qO-", "http://box/"])
        .unwrap();
    assert!(page.contains("Welcome to nginx"), "{page}");

    daemon.berth(&["stop", "box"]).unwrap();
    let shown = daemon.inspect("box").unwrap();
    // An init that was asked in its own way ends in order, not by force.
    assert_eq!(
        shown["exit"]["signal"],
        serde_json::Value::Null,
        "{shown:#}"
    );
    daemon.berth(&["start", "box"]).unwrap();
    until_so("it is up again", || {
        let state = daemon.run(&["exec", "box", "systemctl", "is-active", "nginx"]);
        state.unwrap().out == "active\n"
    });
}

#[test]
fn servers_in_containers_serve_each_other_and_the_outside() {
    let Some(daemon) = debian("servers_in_containers") else {
        return;
    };
    let web = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8081:80",
        "services",
        "nginx",
        "-g",
        "daemon off;",
    ];
    daemon.berth(&web).unwrap();
    let redis = [
        "run",
        "-d",
        "--name",
        "cache",
        "services",
        "redis-server",
        "--protected-mode",
        "no",
    ];
    daemon.berth(&redis).unwrap();
    let database = || {
        let script = "echo 'host all all all trust' > /tmp/hba; cd /usr/lib/postgresql/*/bin; \
            exec ./postgres -D /var/lib/postgresql/*/main -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf) \
            -c hba_file=/tmp/hba -c listen_addresses=* -c unix_socket_directories=/tmp";
        let words = [
            "run",
            "-d",
            "--name",
            "db",
            "-v",
            "data:/var/lib/postgresql",
            "--user",
            "postgres",
        ];
        daemon
            .berth(&[&words[..], &["services", "sh", "-c", script]].concat())
            .unwrap();
    };
    database();
    daemon
        .berth(&["run", "-d", "--name", "client", "services", "sleep", "1000"])
        .unwrap();
    let client = |words: &[&str]| daemon.run(&[&["exec", "client"], words].concat()).unwrap();
    let query = |sql: &str| {
        until("PostgreSQL answers", || {
            let said = client(&["psql", "-h", "db", "-U", "postgres", "-tAc", sql]);
            if said.code != 0 && crate::common::status(&daemon, "db") != "running" {
                panic!("{said:?} {:?}", daemon.run(&["logs", "db"]));
            }
            (said.code == 0).then(|| said.out.trim().to_owned())
        })
    };
    assert_eq!(query("select 6 * 7"), "42");
    query("create table kept as select 'still here' as word");
    let pong = until("redis answers", || {
        let said = client(&["redis-cli", "-h", "cache", "ping"]);
        (said.code == 0).then_some(said.out)
    });
    assert_eq!(pong, "PONG\n");
    let page = until("nginx answers outside", || {
        let mut curl = daemon.netns().command("curl");
        let output = curl
            .args(["-fsS", "http://127.0.0.1:8081/"])
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert!(page.contains("Welcome to nginx"), "{page}");

    // The named volume has the data, not the container.
    daemon.berth(&["rm", "-f", "db"]).unwrap();
    database();
    assert_eq!(query("select word from kept"), "still here");
}
