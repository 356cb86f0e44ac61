//! Networks: names, published ports, separation, and addresses that are nobody else's.

use std::{
    collections::BTreeSet,
    net::{TcpListener, TcpStream, UdpSocket},
};

use testkit::Daemon;

use crate::common::{daemon, until, until_so};

const SERVE: &str = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -h /w -p 80";

fn addresses(daemon: &Daemon, name: &str) -> Vec<String> {
    let shown = daemon.inspect(name).unwrap();
    let all = shown["addresses"].as_array().unwrap();
    all.iter()
        .map(|it| it.as_str().unwrap().to_owned())
        .collect()
}

/// What a program in the daemon's namespace, the outside of its containers, gets from a URL.
fn outside(daemon: &Daemon, url: &str) -> Option<String> {
    let mut curl = daemon.netns().command("curl");
    let output = curl.args(["-gfs", "-m", "2", url]).output().unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn containers_find_each_other_and_are_found() {
    let Some(daemon) = daemon("containers_find_each_other") else {
        return;
    };
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8081:80",
        "busybox",
        "sh",
        "-c",
    ];
    daemon.berth(&[&words[..], &[SERVE]].concat()).unwrap();
    daemon
        .berth(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"])
        .unwrap();
    let inside = |words: &[&str]| daemon.run(&[&["exec", "box"], words].concat()).unwrap();
    until_so("the server listens", || {
        inside(&["wget", "-qO-", "http://web/"]).out == "web\n"
    });
    let [v4, v6] = <[String; 2]>::try_from(addresses(&daemon, "web")).unwrap();
    let names = inside(&["nslookup", "web"]).out;
    assert!(names.contains(&v4) && names.contains(&v6), "{names}");
    assert_eq!(inside(&["ping", "-c", "1", "-W", "5", &v6]).code, 0);
    assert_eq!(
        inside(&["wget", "-qO-", &format!("http://[{v6}]/")]).out,
        "web\n"
    );
    // From the host itself, by any of its addresses; from a container, by the gateway's.
    let gateway = format!("{}.1", v4.rsplit_once('.').unwrap().0);
    for url in [
        "http://127.0.0.1:8080/".to_owned(),
        "http://[::1]:8080/".to_owned(),
        "http://localhost:8080/".to_owned(),
        "http://127.0.0.1:8081/".to_owned(),
        format!("http://{gateway}:8080/"),
        format!("http://[{}::1]:8080/", v6.split_once("::").unwrap().0),
    ] {
        assert_eq!(outside(&daemon, &url).as_deref(), Some("web\n"), "{url}");
    }
    assert_eq!(
        inside(&["wget", "-qO-", &format!("http://{gateway}:8080/")]).out,
        "web\n"
    );
    // Published on one address only.
    assert_eq!(outside(&daemon, &format!("http://{gateway}:8081/")), None);
    let taken = daemon
        .run(&["run", "-d", "-p", "8080:81", "busybox", "true"])
        .unwrap();
    assert_eq!(taken.code, 4, "{taken:?}");

    // Gone with the instance: name, port, rules.
    daemon.berth(&["rm", "-f", "web"]).unwrap();
    assert_ne!(inside(&["nslookup", "web"]).code, 0);
    assert_eq!(outside(&daemon, "http://127.0.0.1:8080/"), None);
    let rules = daemon
        .netns()
        .command("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    assert!(!String::from_utf8(rules.stdout).unwrap().contains("8080"));
}

#[test]
fn ports_that_somebody_has_are_refused() {
    let Some(daemon) = daemon("ports_that_somebody_has_are_refused") else {
        return;
    };
    // The default network is there from now on, and with it the daemon's own name server.
    let words = ["run", "-d", "--name", "dns", "-p", "53:53/udp", "busybox"];
    daemon
        .berth(&[&words[..], &["sleep", "1000"]].concat())
        .unwrap();
    let publish = |port: &str| {
        let words = ["run", "-d", "--name", "new", "-p", port, "busybox"];
        daemon
            .run(&[&words[..], &["sleep", "1000"]].concat())
            .unwrap()
    };
    let refused = |port: &str, named: &str| {
        let said = publish(port);
        assert_eq!(said.code, 4, "{port}: {said:?}");
        assert!(said.err.contains(named), "{port}: {said:?}");
        assert_eq!(daemon.run(&["show", "new"]).unwrap().code, 3, "half made");
    };
    let granted = |port: &str| {
        let said = publish(port);
        assert_eq!(said.code, 0, "{port}: {said:?}");
        daemon.berth(&["rm", "-f", "new"]).unwrap();
    };
    let tcp = |address: &'static str| {
        let bound = daemon.netns().run(|| TcpListener::bind(address));
        bound.unwrap().unwrap()
    };
    let udp = |address: &'static str| {
        let bound = daemon.netns().run(|| UdpSocket::bind(address));
        bound.unwrap().unwrap()
    };

    let programs = (
        tcp("0.0.0.0:7001"),
        tcp("[::1]:7002"),
        udp("127.0.0.1:7003"),
    );
    refused("7001:80", "port 7001/tcp");
    refused("127.0.0.1:7001:80", "0.0.0.0:7001");
    refused("7002:80", "port 7002/tcp");
    refused("7003:80/udp", "port 7003/udp");
    refused("6999-7005:6999-7005", "port 7001/tcp");
    // Another protocol, another address: not in their way.
    granted("7001:80/udp");
    granted("127.0.0.1:7002:80");
    granted("7003:80");
    let address = programs.0.local_addr().unwrap();
    let outgoing = daemon.netns().run(|| {
        let stream = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
        let from = stream.local_addr().unwrap().port();
        (stream, from)
    });
    let (_stream, from) = outgoing.unwrap();
    granted(&format!("{from}:80"));
    drop(programs);
    granted("7001:80");

    // Another instance's, whether it runs or not, also where only one of both takes all addresses.
    let words = [
        "run",
        "-d",
        "--name",
        "old",
        "-p",
        "7001:80",
        "-p",
        "127.0.0.1:7004:80",
        "busybox",
        "true",
    ];
    daemon.berth(&words).unwrap();
    refused("7001:81", "port 7001/tcp");
    refused("127.0.0.1:7001:81", "already published");
    refused("7004:81", "already published");
    granted("127.0.0.2:7004:81");
    granted("[::1]:7004:81");
    // Free again as soon as it is gone.
    daemon.berth(&["rm", "-f", "old"]).unwrap();
    granted("7001:81");
}

#[test]
fn the_hosts_loopback_is_served_whatever_becomes_of_bridged_packets() {
    let test = "the_hosts_loopback_is_served_whatever_becomes_of_bridged_packets";
    let Some(daemon) = daemon(test) else {
        return;
    };
    let setting = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";
    if !std::path::Path::new(setting).exists() {
        return testkit::skip(test, "the module br_netfilter is not loaded");
    }
    // As if the module was loaded, and unloaded, while the daemon runs.
    let filter = |value: &str| {
        let script = format!("echo {value} > {setting}");
        let mut sh = daemon.netns().command("sh");
        assert!(sh.args(["-c", &script]).status().unwrap().success());
    };
    let words = ["run", "-d", "--name", "web", "-p", "8080:80", "busybox"];
    daemon
        .berth(&[&words[..], &["sh", "-c", SERVE]].concat())
        .unwrap();
    let served = || outside(&daemon, "http://[::1]:8080/").as_deref() == Some("web\n");
    for value in ["0", "1", "0"] {
        filter(value);
        until_so("the daemon notices", served);
    }
}

#[test]
fn networks_are_separated() {
    let Some(daemon) = daemon("networks_are_separated") else {
        return;
    };
    daemon
        .berth(&["network", "create", "--ipv4", "10.81.0.0/24", "back"])
        .unwrap();
    let words = [
        "run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", SERVE,
    ];
    daemon.berth(&words).unwrap();
    for (name, network) in [("near", "default"), ("far", "back"), ("alone", "none")] {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            "busybox",
            "sleep",
            "1000",
        ];
        daemon.berth(&words).unwrap();
    }
    let address = addresses(&daemon, "web").remove(0);
    let reach = |from: &str, target: &str, port: &str| {
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {target} {port}");
        daemon.run(&["exec", from, "sh", "-c", &script]).unwrap()
    };
    until_so("the server listens", || {
        reach("near", &address, "80").out.contains("web")
    });
    assert!(
        !reach("far", &address, "80").out.contains("web"),
        "networks reach each other"
    );
    assert!(!reach("alone", &address, "80").out.contains("web"));
    assert_ne!(
        daemon
            .run(&["exec", "far", "nslookup", "web"])
            .unwrap()
            .code,
        0
    );
    // But what is published, is so for all.
    assert!(reach("far", "10.81.0.1", "8080").out.contains("web"));
    let links = daemon
        .berth(&["exec", "alone", "ls", "/sys/class/net"])
        .unwrap();
    assert!(!links.contains("eth"), "{links}");
    let used = daemon.run(&["network", "rm", "back"]).unwrap();
    assert_eq!(used.code, 4, "{used:?}");
}

#[test]
fn no_address_is_ever_handed_out_twice() {
    let Some(mut daemon) = daemon("no_address_is_ever_handed_out_twice") else {
        return;
    };
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        let mut children: Vec<_> = (0..4)
            .map(|n| {
                let name = format!("box-{round}-{n}");
                let words = ["run", "-d", "--name", &name, "busybox", "sleep", "1000"];
                let mut command = daemon.command(&words);
                command
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        // Somewhere in the middle of them.
        std::thread::sleep(std::time::Duration::from_millis(40 * round));
        daemon.kill();
        for child in &mut children {
            child.wait().unwrap();
        }
        daemon.restart().unwrap();
        until("operations end", || {
            let all = daemon.list().unwrap();
            all.iter()
                .all(|(_, status)| status != "creating")
                .then_some(())
        });
    }
    for (name, status) in daemon.list().unwrap() {
        if status == "stopped" {
            daemon.berth(&["start", &name]).unwrap();
        }
        for address in addresses(&daemon, &name) {
            assert!(
                seen.insert(address.clone()),
                "{address} is {name}'s and another's"
            );
        }
        // What the record says is what the kernel has.
        let links = daemon
            .berth(&["exec", &name, "ip", "addr", "show", "eth0"])
            .unwrap();
        let mine = addresses(&daemon, &name);
        assert!(
            mine.iter().all(|it| links.contains(&**it)),
            "{name}: {mine:?} {links}"
        );
    }
}
