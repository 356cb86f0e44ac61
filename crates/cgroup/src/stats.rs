//! What a group has used: read from the kernel's files into numbers with units.
//!
//! Used for `stats`, for the final account of a container (billing) and for `events`. A file that
//! is not there leaves its field `None`; nothing is guessed.

use serde::{Deserialize, Serialize};

use crate::controller::Controller;
use crate::file::{self, FileError};
use crate::group::{Cgroup, Node, Version};
use crate::parse::{self, number};

/// v1 says "no limit" with a huge number rounded down to pages.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

/// Why the usage could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Everything a group counts. `None` where the controller is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    pub pids: Option<PidsStats>,
    /// Block I/O per device; empty if there was none.
    pub io: Vec<IoStats>,
    /// Huge pages per size; empty if the controller is missing.
    pub huge_pages: Vec<HugePageStats>,
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Total, in ns.
    pub usage_ns: u64,
    /// In user mode, in ns.
    pub user_ns: u64,
    /// In the kernel, in ns.
    pub system_ns: u64,
    /// Bandwidth periods that passed.
    pub periods: u64,
    /// Of those, throttled.
    pub throttled_periods: u64,
    /// Time spent throttled, in ns.
    pub throttled_ns: u64,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, page cache included, in bytes.
    pub current_bytes: u64,
    /// The most ever in use, in bytes (v2: since Linux 5.19).
    pub peak_bytes: Option<u64>,
    /// The limit, in bytes; `None` without one.
    pub limit_bytes: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Anonymous memory, in bytes.
    pub anon_bytes: u64,
    /// Page cache, in bytes.
    pub file_bytes: u64,
    /// Page cache not used lately, in bytes: `current - inactive_file` is the working set.
    pub inactive_file_bytes: u64,
    /// Page faults that needed a disk.
    pub major_faults: u64,
    /// Times the limit was hit.
    pub limit_hits: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// The limit; `None` without one.
    pub limit: Option<u64>,
}

/// Block I/O of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStats {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePageStats {
    /// Page size as in the kernel's file names: `2MB`.
    pub page_size: String,
    /// In use, in bytes.
    pub current_bytes: u64,
    /// Times the limit was hit.
    pub limit_hits: u64,
}

impl Stats {
    /// All bytes read and written, over all devices.
    pub fn io_bytes(&self) -> u64 {
        self.io.iter().fold(0, |sum, d| {
            sum.saturating_add(d.read_bytes)
                .saturating_add(d.write_bytes)
        })
    }
}

impl Cgroup {
    /// Reads what the group and those below it have used.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn stats(&self) -> Result<Stats, StatsError> {
        Ok(Stats {
            cpu: self.cpu_stats()?,
            memory: match self.node(Controller::Memory) {
                Some((node, Version::V1)) => memory_v1(&Files(node))?,
                Some((node, Version::V2)) => memory_v2(&Files(node))?,
                None => None,
            },
            pids: match self.node(Controller::Pids) {
                Some((node, _)) => pids(&Files(node))?,
                None => None,
            },
            io: match self.node(Controller::Io) {
                Some((node, Version::V1)) => io_v1(&Files(node))?,
                Some((node, Version::V2)) => io_v2(&Files(node).text("io.stat")?),
                None => Vec::new(),
            },
            huge_pages: match self.node(Controller::Hugetlb) {
                Some((node, version)) => huge_pages(&Files(node), version)?,
                None => Vec::new(),
            },
        })
    }

    fn cpu_stats(&self) -> Result<Option<CpuStats>, StatsError> {
        let mut cpu = CpuStats::default();
        let mut found = false;
        if let Some((node, Version::V1)) = self.node(Controller::Cpuacct) {
            let files = Files(node);
            cpu.usage_ns = files.number("cpuacct.usage")?.unwrap_or(0);
            cpu.user_ns = files.number("cpuacct.usage_user")?.unwrap_or(0);
            cpu.system_ns = files.number("cpuacct.usage_sys")?.unwrap_or(0);
            found = true;
        }
        // cpu.stat has the times of a v2 group even when the controller is not enabled.
        let node = self.node(Controller::Cpu);
        let node = node.or(self
            .v2
            .as_ref()
            .filter(|_| !found)
            .map(|node| (node, Version::V2)));
        if let Some((node, version)) = node {
            cpu_stat(&Files(node).text("cpu.stat")?, version, &mut cpu);
            found = true;
        }
        Ok(found.then_some(cpu))
    }
}

/// The files of one directory.
struct Files<'a>(&'a Node);

impl Files<'_> {
    fn optional(&self, name: &str) -> Result<Option<String>, FileError> {
        file::read_optional(&self.0.dir.join(name))
    }

    fn text(&self, name: &str) -> Result<String, FileError> {
        Ok(self.optional(name)?.unwrap_or_default())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, FileError> {
        Ok(self.optional(name)?.as_deref().and_then(number))
    }
}

fn cpu_stat(text: &str, version: Version, cpu: &mut CpuStats) {
    for (key, value) in parse::flat_keyed(text) {
        let ns = value.saturating_mul(1000);
        match (version, key) {
            (_, "nr_periods") => cpu.periods = value,
            (_, "nr_throttled") => cpu.throttled_periods = value,
            (Version::V1, "throttled_time") => cpu.throttled_ns = value,
            (Version::V2, "usage_usec") => cpu.usage_ns = ns,
            (Version::V2, "user_usec") => cpu.user_ns = ns,
            (Version::V2, "system_usec") => cpu.system_ns = ns,
            (Version::V2, "throttled_usec") => cpu.throttled_ns = ns,
            _ => {}
        }
    }
}

fn memory_v1(files: &Files<'_>) -> Result<Option<MemoryStats>, FileError> {
    let Some(current_bytes) = files.number("memory.usage_in_bytes")? else {
        return Ok(None);
    };
    let limit = files.number("memory.limit_in_bytes")?;
    let mut memory = MemoryStats {
        current_bytes,
        peak_bytes: files.number("memory.max_usage_in_bytes")?,
        limit_bytes: limit.filter(|&n| n < V1_UNLIMITED),
        limit_hits: files.number("memory.failcnt")?.unwrap_or(0),
        ..MemoryStats::default()
    };
    for (key, value) in parse::flat_keyed(&files.text("memory.stat")?) {
        match key {
            "total_rss" => memory.anon_bytes = value,
            "total_cache" => memory.file_bytes = value,
            "total_inactive_file" => memory.inactive_file_bytes = value,
            "total_swap" => memory.swap_bytes = Some(value),
            "total_pgmajfault" => memory.major_faults = value,
            _ => {}
        }
    }
    for (key, value) in parse::flat_keyed(&files.text("memory.oom_control")?) {
        if key == "oom_kill" {
            memory.oom_kills = value;
        }
    }
    Ok(Some(memory))
}

fn memory_v2(files: &Files<'_>) -> Result<Option<MemoryStats>, FileError> {
    let Some(current_bytes) = files.number("memory.current")? else {
        return Ok(None);
    };
    let limit = files.optional("memory.max")?;
    let mut memory = MemoryStats {
        current_bytes,
        peak_bytes: files.number("memory.peak")?,
        limit_bytes: limit.as_deref().and_then(parse::number_or_max).flatten(),
        swap_bytes: files.number("memory.swap.current")?,
        ..MemoryStats::default()
    };
    for (key, value) in parse::flat_keyed(&files.text("memory.stat")?) {
        match key {
            "anon" => memory.anon_bytes = value,
            "file" => memory.file_bytes = value,
            "inactive_file" => memory.inactive_file_bytes = value,
            "pgmajfault" => memory.major_faults = value,
            _ => {}
        }
    }
    for (key, value) in parse::flat_keyed(&files.text("memory.events")?) {
        match key {
            "max" => memory.limit_hits = value,
            "oom_kill" => memory.oom_kills = value,
            _ => {}
        }
    }
    Ok(Some(memory))
}

fn pids(files: &Files<'_>) -> Result<Option<PidsStats>, FileError> {
    let Some(current) = files.number("pids.current")? else {
        return Ok(None);
    };
    let limit = files.optional("pids.max")?;
    let limit = limit.as_deref().and_then(parse::number_or_max).flatten();
    Ok(Some(PidsStats { current, limit }))
}

fn io_v2(text: &str) -> Vec<IoStats> {
    let device = |((major, minor), pairs): ((u32, u32), _)| {
        let mut io = IoStats {
            major,
            minor,
            ..IoStats::default()
        };
        for (key, value) in pairs {
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.read_ops = value,
                "wios" => io.write_ops = value,
                _ => {}
            }
        }
        io
    };
    let pairs = parse::nested_device_keyed(text).map(|(d, p)| (d, p.collect::<Vec<_>>()));
    pairs.map(device).collect()
}

/// The `_recursive` files count children as v2 does; BFQ's replace the throttle's where they are
/// fed, so whichever saw more is believed.
fn io_v1(files: &Files<'_>) -> Result<Vec<IoStats>, FileError> {
    let read = |policy: &str| -> Result<Vec<IoStats>, FileError> {
        let bytes = files.text(&format!("blkio.{policy}io_service_bytes_recursive"))?;
        let operations = files.text(&format!("blkio.{policy}io_serviced_recursive"))?;
        Ok(merge_v1(&bytes, &operations))
    };
    let total = |list: &[IoStats]| {
        list.iter()
            .map(|d| u128::from(d.read_bytes) + u128::from(d.write_bytes))
            .sum::<u128>()
    };
    let (throttle, bfq) = (read("throttle.")?, read("bfq.")?);
    Ok(if total(&bfq) > total(&throttle) {
        bfq
    } else {
        throttle
    })
}

/// Joins the `major:minor Operation count` lines of the two v1 files.
fn merge_v1(bytes: &str, operations: &str) -> Vec<IoStats> {
    let mut all: Vec<IoStats> = Vec::new();
    for (text, in_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let Some((major, minor)) = words.next().and_then(parse::device) else {
                continue;
            };
            let (Some(kind), Some(value)) = (words.next(), words.next().and_then(number)) else {
                continue;
            };
            let known = all
                .iter()
                .position(|d| (d.major, d.minor) == (major, minor));
            let at = known.unwrap_or_else(|| {
                all.push(IoStats {
                    major,
                    minor,
                    ..IoStats::default()
                });
                all.len() - 1
            });
            match (kind, in_bytes) {
                ("Read", true) => all[at].read_bytes = value,
                ("Write", true) => all[at].write_bytes = value,
                ("Read", false) => all[at].read_ops = value,
                ("Write", false) => all[at].write_ops = value,
                _ => {}
            }
        }
    }
    all
}

fn huge_pages(files: &Files<'_>, version: Version) -> Result<Vec<HugePageStats>, FileError> {
    let (current, hits) = match version {
        Version::V1 => ("usage_in_bytes", "failcnt"),
        Version::V2 => ("current", "events"),
    };
    let mut all = Vec::new();
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Ok(all);
    };
    for entry in sizes.flatten() {
        let name = entry.file_name();
        let kib = name
            .to_str()
            .and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(page_size) = kib.and_then(number).map(size_name) else {
            continue;
        };
        let Some(current_bytes) = files.number(&format!("hugetlb.{page_size}.{current}"))? else {
            continue;
        };
        let text = files.text(&format!("hugetlb.{page_size}.{hits}"))?;
        let limit_hits = match version {
            Version::V1 => number(&text),
            Version::V2 => parse::flat_keyed(&text)
                .find(|(k, _)| *k == "max")
                .map(|(_, n)| n),
        };
        all.push(HugePageStats {
            page_size,
            current_bytes,
            limit_hits: limit_hits.unwrap_or(0),
        });
    }
    Ok(all)
}

/// 2048 (KiB) as `2MB`, the way the kernel names its files.
fn size_name(kib: u64) -> String {
    match kib {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

/// All pure parsers of this module, for the fuzz target.
pub(crate) fn parse_all(text: &str) -> (CpuStats, Vec<IoStats>, Vec<IoStats>) {
    let mut cpu = CpuStats::default();
    cpu_stat(text, Version::V1, &mut cpu);
    cpu_stat(text, Version::V2, &mut cpu);
    (cpu, io_v2(text), merge_v1(text, text))
}
