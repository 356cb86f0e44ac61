//! Machines in the jail: Debian's unmodified kernel on the software CPU, and on KVM where that can; a
//! bare-metal guest on both. Boots, ends of every kind, the console and the control socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bare;
mod guest;

use guest::{Guest, Media};
use serde_json::json;
use vmm::{
    StopReason,
    control::{
        Event, Reply, Request,
        protocol::{Limits, RunState},
    },
};

/// Skips the test where there is no kernel.
macro_rules! media {
    ($test:literal) => {
        match Media::new($test) {
            Some(media) => media,
            None => return,
        }
    };
}

#[test]
fn debian_boots_to_init_with_one_and_with_four_vcpus_and_powers_off() {
    let media = media!("debian_boots_to_init_with_one_and_with_four_vcpus_and_powers_off");
    for vcpus in [1, 4] {
        let mut guest = Guest::start(&media, |config| config["vcpus"] = json!(vcpus));
        guest.expect("INIT-IS-UP on 6.");
        guest.type_in("echo there are $(nproc) of them");
        guest.expect(&format!("there are {vcpus} of them"));
        guest.type_in("cat /sys/bus/pci/devices/*/vendor | sort | uniq -c | tr -s ' \\n' '  '");
        // The host bridge, and the source of entropy of virtio.
        guest.expect("1 0x1af4");
        guest.type_in("poweroff -f");
        guest.expect("reboot: Power down");
        let log = guest.log();
        for bad in ["BUG:", "WARNING:", "Oops", "ACPI Error", "ACPI BIOS"] {
            assert!(!log.contains(bad), "{bad} in:\n{log}");
        }
        let (record, status) = guest.ends();
        assert_eq!((record.reason, record.boots), (StopReason::PowerOff, 1));
        assert_eq!(status, 0);
    }
}

/// A guest without an operating system on `accel`.
fn bare_guest(accel: &str, directory: &std::path::Path) -> Guest {
    let kernel = directory.join("bare");
    bare::write(&kernel);
    let media = Media {
        vmlinuz: kernel.clone(),
        vmlinux: kernel,
        initrd: std::path::PathBuf::new(),
    };
    Guest::start(&media, |config| {
        config["accel"] = json!(accel);
        config["initrd"] = json!([]);
        config["memory_bytes"] = json!(32 << 20);
    })
}

#[test]
fn a_bare_metal_guest_runs_in_the_jail_on_every_backend() {
    let name = "a_bare_metal_guest_runs_in_the_jail_on_every_backend";
    let directory = tempfile::tempdir().unwrap();
    for accel in ["soft", "kvm"] {
        if accel == "kvm"
            && let Err(error) = cpu::kvm::KvmDevice::open()
        {
            guest::skip(name, &format!("no KVM: {}", StopReason::error(&error)));
            continue;
        }
        let mut guest = bare_guest(accel, directory.path());
        guest.expect(bare::GREETING);
        let mut control = guest.control();
        let Reply::Status(status) = control.call(&Request::Status).unwrap() else {
            panic!("no status");
        };
        assert_eq!(status.accel, accel);
        // By interrupts: what is typed comes back, also over a pause.
        guest.type_in("hello");
        guest.expect("hello\n");
        control.call(&Request::Pause).unwrap();
        guest.type_in("again");
        control.call(&Request::Resume).unwrap();
        guest.expect("again\n");
        guest.type_in(bare::RESET);
        guest.expect(bare::GREETING);
        guest.type_in(bare::OFF);
        let (record, status) = guest.ends();
        assert_eq!((record.reason, record.boots), (StopReason::PowerOff, 2));
        assert_eq!(status, 0);

        let mut guest = bare_guest(accel, directory.path());
        guest.expect(bare::GREETING);
        guest.type_in(bare::FAULT);
        let (record, _) = guest.ends();
        assert_eq!(record.reason, StopReason::TripleFault);
    }
}

#[test]
fn debian_boots_on_kvm_wherever_the_probe_passes() {
    let name = "debian_boots_on_kvm_wherever_the_probe_passes";
    let probe = cpu::kvm::probe::run();
    if !probe.usable {
        guest::skip(name, &probe.reason.unwrap_or_default());
        return;
    }
    let media = media!("debian_boots_on_kvm_wherever_the_probe_passes");
    for vcpus in [1, 4] {
        let mut guest = Guest::start(&media, |config| {
            config["accel"] = json!("kvm");
            config["vcpus"] = json!(vcpus);
        });
        guest.expect("INIT-IS-UP on 6.");
        guest.type_in("echo there are $(nproc) of them");
        guest.expect(&format!("there are {vcpus} of them"));
        guest.control().call(&Request::Pause).unwrap();
        guest.control().call(&Request::Resume).unwrap();
        guest.type_in("poweroff -f");
        guest.expect("reboot: Power down");
        let log = guest.log();
        for bad in ["BUG:", "WARNING:", "Oops", "soft lockup"] {
            assert!(!log.contains(bad), "{bad} in:\n{log}");
        }
        assert_eq!(guest.ends().0.reason, StopReason::PowerOff);
    }
}

#[test]
fn a_bzimage_boots_as_its_vmlinux_does() {
    let media = media!("a_bzimage_boots_as_its_vmlinux_does");
    let mut guest = Guest::start(&media, |config| config["kernel"] = json!(media.vmlinuz));
    guest.expect("INIT-IS-UP");
}

#[test]
fn a_guest_that_resets_itself_boots_again_in_a_new_process() {
    let media = media!("a_guest_that_resets_itself_boots_again_in_a_new_process");
    let mut guest = Guest::start(&media, |config| {
        // Without `reboot=`: as a guest does that was told nothing.
        config["command_line"] = json!("console=ttyS0 panic=-1 mitigations=off");
        config["vcpus"] = json!(2);
    });
    guest.expect("INIT-IS-UP");
    let first = guest.machine_pid();
    guest.type_in("reboot -f");
    guest.expect("reboot: Restarting system");
    guest.expect("INIT-IS-UP");
    assert_ne!(guest.machine_pid(), first);
    let mut control = guest.control();
    let Reply::Status(status) = control.call(&Request::Status).unwrap() else {
        panic!("no status");
    };
    assert_eq!((status.boots, status.state), (2, RunState::Running));
    control.call(&Request::Kill).unwrap();
    let (record, status) = guest.ends();
    assert_eq!((record.reason, record.boots), (StopReason::Killed, 2));
    assert_eq!(status, 0);
}

#[test]
fn a_triple_fault_ends_the_machine_and_says_so() {
    let media = media!("a_triple_fault_ends_the_machine_and_says_so");
    let mut guest = Guest::start(&media, |config| {
        config["command_line"] = json!("console=ttyS0 panic=-1 reboot=t mitigations=off");
    });
    guest.expect("INIT-IS-UP");
    let mut control = guest.control();
    control.call(&Request::Subscribe).unwrap();
    guest.type_in("exit");
    guest.expect("Kernel panic");
    let reason = StopReason::TripleFault;
    assert_eq!(control.event().unwrap(), Event::Stopped { reason });
    let (record, status) = guest.ends();
    assert_eq!(record.reason, StopReason::TripleFault);
    assert_eq!(status, 1);
}

#[test]
fn the_control_socket_pauses_resumes_counts_and_presses_the_power_button() {
    let media = media!("the_control_socket_pauses_resumes_counts_and_presses_the_power_button");
    let mut guest = Guest::start(&media, |config| config["vcpus"] = json!(2));
    guest.expect("INIT-IS-UP");
    let mut control = guest.control();
    control.call(&Request::Subscribe).unwrap();
    let time_of_vcpus = |control: &mut vmm::control::Client| -> Vec<u64> {
        let Reply::Stats(stats) = control.call(&Request::Stats).unwrap() else {
            panic!("no stats");
        };
        assert!(stats.memory_resident_bytes > 16 << 20);
        stats.vcpus.iter().map(|it| it.cpu_time_ns).collect()
    };

    guest.type_in("(while :; do :; done) & (while :; do :; done) &");
    control.call(&Request::Pause).unwrap();
    let state = RunState::Paused;
    assert_eq!(control.event().unwrap(), Event::State { state });
    let paused = time_of_vcpus(&mut control);
    guest.type_in("echo typed $((20 + 2)) times");
    std::thread::sleep(std::time::Duration::from_millis(300));
    // What their threads took until they waited, against 600 ms of two that run.
    let since = time_of_vcpus(&mut control).iter().sum::<u64>() - paused.iter().sum::<u64>();
    assert!(since < 100_000_000, "{since}");
    let refused = control.call(&Request::Stop).unwrap_err().to_string();
    assert!(refused.contains("paused"), "{refused}");
    control.call(&Request::Resume).unwrap();
    guest.expect("typed 22 times");
    let running = time_of_vcpus(&mut control);
    assert!(running.iter().sum::<u64>() > paused.iter().sum::<u64>());

    let pinned = Limits {
        pinning: Some(vec![vec![0], vec![0]]),
        ..Limits::default()
    };
    control.call(&Request::SetLimits(pinned)).unwrap();
    let balloon = Limits {
        balloon_bytes: Some(0),
        ..Limits::default()
    };
    assert!(control.call(&Request::SetLimits(balloon)).is_err());

    guest.type_in("until grep 'ACPI:Ged' /proc/interrupts | grep -q '[1-9] .*IO'; do :; done; echo pressed: $((1+1))");
    control.call(&Request::Stop).unwrap();
    guest.expect("pressed: 2");
}

#[test]
fn a_machine_whose_process_is_killed_leaves_a_record_and_one_without_supervisor_ends() {
    let name = "a_machine_whose_process_is_killed_leaves_a_record_and_one_without_supervisor_ends";
    let media = media!("a_machine_whose_process_is_killed_leaves_a_record");
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let mut guest = Guest::start(&media, |_| ());
    guest.expect("Linux version");
    kill(guest.machine_pid());
    let (record, status) = guest.ends();
    assert_eq!(record.reason, StopReason::Crashed { signal: 9 }, "{name}");
    assert_eq!(status, 1);

    // Not a clean end either, though it was asked for: the guest was not.
    let mut guest = Guest::start(&media, |_| ());
    guest.expect("Linux version");
    let pid = rustix::process::Pid::from_child(&guest.vmm);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (record, status) = guest.ends();
    assert_eq!(record.reason, StopReason::Terminated { signal: 15 });
    assert_eq!(status, 128 + 15);

    let mut guest = Guest::start(&media, |_| ());
    guest.expect("Linux version");
    let pid = rustix::process::Pid::from_raw(guest.machine_pid()).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    let machine = rustix::process::pidfd_open(pid, flags).unwrap();
    guest.vmm.kill().unwrap();
    let mut ended = [rustix::event::PollFd::new(
        &machine,
        rustix::event::PollFlags::IN,
    )];
    let patience = rustix::event::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut ended, Some(&patience)).unwrap(), 1);
}

#[test]
fn what_is_missing_is_said_and_recorded() {
    let media = media!("what_is_missing_is_said_and_recorded");
    let guest = Guest::start(&media, |config| config["initrd"] = json!(["/no/such/file"]));
    let (record, status) = guest.ends();
    let StopReason::Error { message } = record.reason else {
        panic!("{record:?}");
    };
    let expected = "the machine cannot be started: open the initrd /no/such/file: ";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(status, 1);
}
