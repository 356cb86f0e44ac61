//! `berth-vmm boot`: a machine in the foreground, without a jail.

use std::{os::unix::net::UnixStream, path::PathBuf, time::Instant};

use clap::{Args, ValueEnum};
use cpu::soft::Tier;
use devices::virtio::Limits;
use vmm::{
    StopReason, VmConfig,
    config::{
        Accel, CONFIG_VERSION, ConsoleConfig, CpuLevel, DiskConfig, JailConfig, NetConfig,
        ShareConfig, Stdio, VsockConfig,
    },
    machine::choose,
    process::{Options, run as run_machine},
    resources::Listeners,
};

use crate::{Failure, terminal::Terminal};

/// Enough for a kernel to say something, and to end when it panics.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1";
const DEFAULT_CID: u32 = 3;

#[derive(Args)]
pub struct Arguments {
    /// bzImage or vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM file system; several are put one behind the other
    #[arg(long, value_name = "FILE")]
    initrd: Vec<PathBuf>,
    /// Kernel command line, after "console=ttyS0 reboot=k panic=-1"
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
    /// Memory, as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Disk image (raw), several allowed
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Folder of the host, several allowed: mount -t virtiofs share0 /mnt
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Existing tap device, several allowed
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,
    /// Unix socket to make for programs that connect to the guest (vsock, CID 3)
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// Unix socket to make for commands
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What executes the vCPUs
    #[arg(long, value_enum, default_value_t = AccelArgument::Auto)]
    accel: AccelArgument,
    /// Have the software CPU interpret all code, for comparison
    #[arg(long)]
    no_translate: bool,
    /// Have the software CPU interpret and translate all code, and end when the two disagree (one vCPU, no disks)
    #[arg(long, conflicts_with = "no_translate")]
    lockstep: bool,
    /// Say how long the start took, and in the end what the software CPU did
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum AccelArgument {
    Auto,
    Kvm,
    Soft,
}

/// A number of bytes, with K, M, G or T for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        other => return Err(format!("{other:?} is no unit; use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is too much"))
}

impl Arguments {
    fn config(&self) -> VmConfig {
        let disks = self
            .disk
            .iter()
            .enumerate()
            .map(|(index, path)| DiskConfig {
                id: format!("disk{index}"),
                path: path.clone(),
                read_only: false,
                read_rate: Limits::default(),
                write_rate: Limits::default(),
            });
        let nets = self.tap.iter().enumerate().map(|(index, tap)| NetConfig {
            tap: Some(tap.clone()),
            interface: None,
            mac: [0x52, 0x54, 0, 0, 0, u8::try_from(index).unwrap_or(u8::MAX)],
            mtu: None,
            receive_rate: Limits::default(),
            transmit_rate: Limits::default(),
        });
        let shares = self
            .share
            .iter()
            .enumerate()
            .map(|(index, path)| ShareConfig {
                tag: format!("share{index}"),
                path: path.clone(),
                read_only: false,
                read_rate: Limits::default(),
                write_rate: Limits::default(),
            });
        VmConfig {
            version: CONFIG_VERSION,
            name: "boot".into(),
            memory_bytes: self.memory,
            vcpus: self.cpus,
            accel: match self.accel {
                AccelArgument::Auto => Accel::Auto,
                AccelArgument::Kvm => Accel::Kvm,
                AccelArgument::Soft => Accel::Soft,
            },
            kvm_descriptor: None,
            cpu: CpuLevel::Host,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            command_line: format!("{COMMAND_LINE} {}", self.append),
            disks: disks.collect(),
            nets: nets.collect(),
            vsock: self.vsock.clone().map(|socket| VsockConfig {
                cid: DEFAULT_CID,
                socket,
            }),
            shares: shares.collect(),
            console: ConsoleConfig::default(),
            rng: true,
            balloon: false,
            pinning: Vec::new(),
            control: self.control.clone(),
            exit_record: None,
            stdio: Stdio::None,
            jail: JailConfig::default(),
        }
    }
}

/// Boots, and again after each reset, until the machine stops.
pub fn run(arguments: &Arguments, since: Instant) -> Result<StopReason, Failure> {
    let mut config = arguments.config();
    config.check()?;
    let backend = choose(config.accel);
    let listeners = Listeners::bind(&config)?;
    let mut boots = 0;
    loop {
        boots += 1;
        let (console, ours) = UnixStream::pair()?;
        let terminal = Terminal::connect(ours)?;
        let options = Options {
            backend,
            jail: false,
            attached: Some(console),
            boots,
            since: if boots == 1 { since } else { Instant::now() },
            verbose: arguments.verbose,
            tier: match (arguments.no_translate, arguments.lockstep) {
                (true, _) => Tier::Interpret,
                (_, true) => Tier::Lockstep,
                _ => Tier::default(),
            },
            supervisor: None,
        };
        let ended = run_machine(&config, &listeners, options);
        terminal.finish();
        let ended = ended?;
        if ended.reason != StopReason::Reset {
            return Ok(ended.reason);
        }
        config.set_limits(&ended.limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024_and_nothing_else() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "M", "1X", "1MM", "-1", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }
}
