//! The processes of a container, from its control group and `proc(5)`.

use std::fs;

use engine::GuestProcessInfo;

/// Processes shown at most.
const MAX: usize = 4096;
/// Bytes of a command line shown.
const MAX_COMMAND: usize = 4096;

/// Every process of the control group, oldest first; `leader` is the container's first process.
pub(super) fn list(
    group: &str,
    leader: u32,
) -> Result<Vec<GuestProcessInfo>, Box<dyn std::error::Error + Send + Sync>> {
    let layout = cgroup::Layout::detect()?;
    let group = cgroup::Cgroup::open(&layout, &cgroup::CgroupPath::parse(group)?)?;
    let mut pids = group.pids()?;
    pids.sort_unstable();
    let map = first_mapped_id(leader);
    let ticks = rustix::param::clock_ticks_per_second();
    let page = rustix::param::page_size() as u64;
    // One that ended since it was listed is left out.
    let info = |pid| info(u32::try_from(pid).ok()?, map, ticks, page);
    Ok(pids.into_iter().take(MAX).filter_map(info).collect())
}

fn info(pid: u32, map: u32, ticks: u64, page: u64) -> Option<GuestProcessInfo> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything; fields are counted from behind it.
    let (head, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().map(str::to_owned).next_back()
    };
    let uid: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command[..command.len().min(MAX_COMMAND)])
        .trim_end_matches('\0')
        .replace('\0', " ");
    let name = head.split_once(" (").map_or("", |(_, name)| name);
    Some(GuestProcessInfo {
        pid,
        inner_pid: field("NSpid:")?.parse().ok()?,
        uid: uid.checked_sub(map).unwrap_or(uid),
        cpu_ms: (number(11)? + number(12)?) * 1000 / ticks.max(1),
        rss_bytes: number(21)? * page,
        state: fields.first()?.chars().next()?,
        command: if command.is_empty() {
            format!("[{name}]")
        } else {
            command
        },
    })
}

/// The host's id of id 0 inside; 0 when both share their users.
fn first_mapped_id(leader: u32) -> u32 {
    let map = fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap_or_default();
    let mut words = map.split_whitespace();
    match (words.next(), words.next()) {
        (Some("0"), Some(outside)) => outside.parse().unwrap_or(0),
        _ => 0,
    }
}
