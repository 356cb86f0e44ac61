//! What the guest uses, read from `/proc`. See `proc(5)`.

use std::{fs, io};

use agent::protocol::{MAX_COMMAND_BYTES, MAX_PROCESSES, Process, Usage};

/// Microseconds of a clock tick; the kernel's user interface has always 100 a second on this machine.
const TICK_US: u64 = 10_000;
const PAGE_BYTES: u64 = 4096;

/// Totals.
pub fn usage() -> io::Result<Usage> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| -> u64 {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        number.and_then(|text| text.parse().ok()).unwrap_or(0) * 1024
    };
    let disk = rustix::fs::statvfs("/")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load
        .split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0.0);
    Ok(Usage {
        cpu_us: busy_us(&fs::read_to_string("/proc/stat")?),
        memory_bytes: kib("MemTotal"),
        memory_available_bytes: kib("MemAvailable"),
        memory_cache_bytes: kib("Cached") + kib("Buffers"),
        disk_bytes: disk.f_blocks * disk.f_frsize,
        disk_used_bytes: disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize,
        processes: u32::try_from(pids()?.count()).unwrap_or(u32::MAX),
        load_1m_milli: (load * 1000.0) as u32,
    })
}

/// Time not idle, of the first line: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_us(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).take(7);
    fields
        .enumerate()
        .filter(|(number, _)| !matches!(number, 3 | 4))
        .map(|(_, text)| text.parse().unwrap_or(0))
        .sum::<u64>()
        .saturating_mul(TICK_US)
}

/// Every process, up to the protocol's limit.
pub fn processes() -> io::Result<Vec<Process>> {
    Ok(pids()?.filter_map(process).take(MAX_PROCESSES).collect())
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// One process; `None` when it has gone meanwhile.
fn process(pid: u32) -> Option<Process> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    // The name stands in parentheses and may hold anything, also parentheses.
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| -> u64 { fields.get(at).and_then(|it| it.parse().ok()).unwrap_or(0) };
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = uid.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let line = read("cmdline").unwrap_or_default();
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let line = String::from_utf8_lossy(line).replace('\0', " ");
    let command = if line.is_empty() {
        format!("[{name}]")
    } else {
        line
    };
    Some(Process {
        pid,
        parent: u32::try_from(number(1)).unwrap_or(0),
        uid: uid.unwrap_or(0),
        state: fields.first()?.chars().next()?,
        cpu_us: (number(11) + number(12)).saturating_mul(TICK_US),
        memory_bytes: number(21).saturating_mul(PAGE_BYTES),
        command: agent::client::clean(&command, MAX_COMMAND_BYTES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_and_guest_time_do_not_count_as_use() {
        let stat = "cpu  10 20 30 1000 500 1 2 3 7777 8888\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        // Steal (3) is the seventh after two idle ones are left out; it is not taken.
        assert_eq!(busy_us(stat), (10 + 20 + 30 + 1 + 2) * TICK_US);
        assert_eq!(busy_us(""), 0);
    }
}
