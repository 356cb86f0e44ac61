//! A small internet in network namespaces of the test's own: a host that runs the driver, the
//! world outside of it, and instances. Nothing has a name or a file, so everything ends with the
//! test's process, however that ends.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use ipnetwork::IpNetwork;
use network::{Attachment, Driver, Guarded, IfName, Mac, NetworkConfig, Outside, Prefix};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// How long a connection that should come about may take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait for a connection that should not come about.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// A network namespace that lives as long as this handle.
pub struct Ns(OwnedFd);

impl Ns {
    pub fn new() -> Self {
        let open = || {
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::NEWNET).expect("unshare: run as root");
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(open).join().unwrap().into())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let body = || {
                move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            };
            scope
                .spawn(body)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside; its output, or a panic if it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(|| {
            Command::new("sh")
                .args(["-ec", script])
                .output()
                .expect("run sh")
        });
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Serves TCP on `address` inside: tells each client its own address as seen from here.
    pub fn serve(&self, address: &str) {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    }

    /// Connects from inside; what the server says.
    pub fn ask(&self, address: &str) -> Option<String> {
        self.connect(address, PATIENCE)
    }

    /// Whether the server cannot be reached from inside.
    pub fn barred(&self, address: &str) -> bool {
        self.connect(address, IMPATIENCE).is_none()
    }

    fn connect(&self, address: &str, patience: Duration) -> Option<String> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }
}

/// A host with a driver, connected to the world outside.
pub struct Lab {
    pub host: Ns,
    pub outside: Ns,
    pub driver: Driver,
}

pub fn prefix() -> Prefix {
    Prefix::parse("lab").unwrap()
}

impl Lab {
    /// The host is 192.0.2.1 and fd01::1, the world 192.0.2.2 and fd01::2.
    pub fn new() -> Self {
        let (host, outside) = (Ns::new(), Ns::new());
        let fd = std::os::fd::AsRawFd::as_raw_fd(&outside.fd());
        let pid = std::process::id();
        host.sh(&format!(
            // Other software of the machine decides these defaults; and duplicate address detection
            // would make the first second of every link deaf.
            "[ ! -e /proc/sys/net/bridge ] || for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 > $f; done
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
             ip link set lo up
             ip link add wan0 type veth peer name up0 netns /proc/{pid}/fd/{fd}
             ip link set wan0 up
             ip addr add 192.0.2.1/24 dev wan0
             ip addr add fd01::1/64 dev wan0 nodad"
        ));
        outside.sh("ip link set lo up; ip link set up0 up
             ip addr add 192.0.2.2/24 dev up0
             ip addr add fd01::2/64 dev up0 nodad");
        let driver = host.run(|| Driver::open(prefix()).unwrap());
        Self {
            host,
            outside,
            driver,
        }
    }

    /// Joins a new instance to `network`.
    pub fn instance(&self, key: &str, network: &NetworkConfig, last: u8) -> Instance {
        self.instance_with(key, network, last, |_| {})
    }

    pub fn instance_with(
        &self,
        key: &str,
        network: &NetworkConfig,
        last: u8,
        change: impl FnOnce(&mut Attachment<'_>),
    ) -> Instance {
        let ns = Ns::new();
        let mac = Mac::derive(key);
        let (addresses, gateways) = addresses(network, last);
        let mut attachment = Attachment {
            key,
            network: &network.name,
            netns: ns.fd(),
            ifname: IfName::parse("eth0").unwrap(),
            mac,
            addresses: addresses.clone(),
            gateways,
            mtu: None,
            hairpin: false,
            isolated: false,
        };
        change(&mut attachment);
        let attached = self.driver.attach(&attachment).unwrap();
        drop(attachment);
        let addresses = addresses.iter().map(IpNetwork::ip).collect();
        Instance {
            ns,
            guarded: Guarded {
                port: attached.host_ifname,
                mac,
                addresses,
            },
        }
    }
}

/// An instance's addresses ending in `last`, and its gateways.
pub fn addresses(network: &NetworkConfig, last: u8) -> (Vec<IpNetwork>, Vec<IpAddr>) {
    let gateways = network.gateways();
    let own = |gateway: &IpNetwork| {
        let ip: IpAddr = match gateway.ip() {
            IpAddr::V4(ip) => (ip.to_bits() - 1 + u32::from(last)).to_be_bytes().into(),
            IpAddr::V6(ip) => (ip.to_bits() - 1 + u128::from(last)).to_be_bytes().into(),
        };
        IpNetwork::new(ip, gateway.prefix()).unwrap()
    };
    (
        gateways.iter().map(own).collect(),
        gateways.iter().map(IpNetwork::ip).collect(),
    )
}

pub struct Instance {
    pub ns: Ns,
    pub guarded: Guarded,
}

/// Network `name` is 10.77.`number`.0/24 and fd77:`number`::/64.
pub fn net(name: &str, number: u8, outside: Outside) -> NetworkConfig {
    NetworkConfig {
        name: name.to_owned(),
        gateway4: Some(format!("10.77.{number}.1/24").parse().unwrap()),
        gateway6: Some(format!("fd77:{number}::1/64").parse().unwrap()),
        mtu: None,
        outside,
        reaches: Vec::new(),
    }
}
