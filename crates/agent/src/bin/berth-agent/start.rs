//! Hands the guest over to what it is for, or stays and runs it.
//!
//! Called once at the end of booting, inside the new root, as PID 1.

use std::{
    convert::Infallible,
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::Command,
    thread,
};

use agent::{
    config::{Config, Start},
    protocol::{Notice, Program},
};

use crate::{
    RUN_DIRECTORY,
    boot::{BootError, at},
    console::say,
    serve,
};

/// Where images have their init.
const INITS: &[&str] = &[
    "/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
];

/// Does not return unless the guest is at its end.
pub fn run(config: &Config) -> Result<(), BootError> {
    match &config.start {
        Start::System { init } => match system(init.as_deref(), config)? {},
        Start::Application(program) => application(program),
        Start::Idle | Start::Beside => {
            thread::spawn(serve::run);
            serve::notice::ready();
            loop {
                thread::park();
            }
        }
    }
}

/// Becomes the image's init.
fn system(init: Option<&str>, config: &Config) -> Result<Infallible, BootError> {
    let wanted = init.map_or_else(|| INITS.to_vec(), |init| vec![init]);
    let program = wanted
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| BootError::NoInit(wanted.join(", ")))?;
    let target = fs::canonicalize(program).unwrap_or_default();
    if target.ends_with("systemd") {
        systemd_units()?;
        if !has_udev() {
            without_udev()?;
        }
        for (number, interface) in config.interfaces.iter().enumerate() {
            let text = crate::boot::networkd(interface, &config.dns);
            write_run(
                &format!("/run/systemd/network/10-berth{number}.network"),
                &text,
            )?;
        }
    } else {
        // Its parent becomes the init, which reaps it at the end.
        let agent = format!("{RUN_DIRECTORY}/berth-agent");
        let mut command = Command::new(&agent);
        command.arg("serve").env_clear();
        command.spawn().map_err(|source| BootError::Start {
            program: agent,
            source,
        })?;
        serve::notice::ready();
    }
    let source = Command::new(program)
        .arg0(program)
        .env_clear()
        .env("TERM", "linux")
        .exec();
    Err(BootError::Start {
        program: (*program).to_owned(),
        source,
    })
}

/// Units of the agent, for this boot only. See `systemd.unit(5)`.
fn systemd_units() -> Result<(), BootError> {
    let units = "/run/systemd/system";
    let serve = format!(
        "[Unit]\nDescription=Berth guest agent\nDefaultDependencies=no\n\
         [Service]\nExecStart={RUN_DIRECTORY}/berth-agent serve\nRestart=always\nRestartSec=100ms\n\
         KillMode=process\nOOMScoreAdjust=-900\n"
    );
    write_run(&format!("{units}/berth-agent.service"), &serve)?;
    let ready = format!(
        "[Unit]\nDescription=Tell the host that the system is up\nDefaultDependencies=no\n\
         After=multi-user.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={RUN_DIRECTORY}/berth-agent ready\n"
    );
    write_run(&format!("{units}/berth-ready.service"), &ready)?;
    // It runs where there are modules, and fails where there is no tool to list them.
    let static_nodes = (!Path::new("/bin/kmod").exists()).then_some("kmod-static-nodes.service");
    for unit in POINTLESS.iter().copied().chain(static_nodes) {
        let mask = format!("{units}/{unit}");
        symlink("/dev/null", &mask).map_err(at("make", &mask))?;
    }
    for (target, unit) in [
        ("sysinit", "berth-agent.service"),
        ("multi-user", "berth-ready.service"),
    ] {
        let directory = format!("{units}/{target}.target.wants");
        fs::create_dir_all(&directory).map_err(at("make", &directory))?;
        let link = format!("{directory}/{unit}");
        symlink(format!("../{unit}"), &link).map_err(at("make", &link))?;
    }
    Ok(())
}

/// Units of images that look for hardware no guest has: LVM snapshots to check, which takes seconds.
const POINTLESS: &[&str] = &["e2scrub_reap.service", "e2scrub_all.timer"];

/// Whether the image runs udev, which systemd needs to hear of devices.
fn has_udev() -> bool {
    let program = "/usr/lib/systemd/systemd-udevd";
    let also = "/lib/systemd/systemd-udevd";
    let mask = fs::read_link("/etc/systemd/system/systemd-udevd.service").unwrap_or_default();
    (Path::new(program).exists() || Path::new(also).exists()) && mask != Path::new("/dev/null")
}

/// Without udev no device ever appears to systemd, and what waits for one waits for its timeout: the
/// login on the serial console moves to the unit that needs no device.
fn without_udev() -> Result<(), BootError> {
    let units = Path::new("/run/systemd/system");
    for console in ["ttyS0", "hvc0"] {
        let unit = units.join(format!("serial-getty@{console}.service"));
        symlink("/dev/null", &unit).map_err(at("make", &unit))?;
    }
    let getty = Path::new("/lib/systemd/system/console-getty.service");
    let link = units.join("multi-user.target.wants/console-getty.service");
    if getty.exists() {
        symlink(getty, &link).map_err(at("make", &link))?;
    }
    Ok(())
}

fn write_run(path: &str, text: &str) -> Result<(), BootError> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).map_err(at("make", parent))?;
    }
    fs::write(path, text).map_err(at("write", path))
}

/// Runs one program, tells the host how it ended.
fn application(program: &Program) -> Result<(), BootError> {
    thread::spawn(serve::run);
    let main = serve::application::start(program).map_err(|source| BootError::Start {
        program: program.args.first().cloned().unwrap_or_default(),
        source,
    })?;
    serve::notice::ready();
    let exit = main.wait();
    say(&format!("the program ended with exit code {}", exit.code()));
    serve::notice::tell(Notice::Exited(exit));
    Ok(())
}
