//! A control group's numbers as an engine's.

use engine::GuestStats;

/// The numbers of a guest. What a controller is missing for is 0.
pub(super) fn guest_stats(seen: &cgroup::Stats) -> GuestStats {
    let cpu = seen.cpu.clone().unwrap_or_default();
    let memory = seen.memory.clone().unwrap_or_default();
    GuestStats {
        cpu_ns: cpu.usage_ns,
        throttled_ns: cpu.throttled_ns,
        memory_bytes: memory
            .current_bytes
            .saturating_sub(memory.inactive_file_bytes),
        memory_peak_bytes: memory.peak_bytes.unwrap_or(memory.current_bytes),
        swap_bytes: memory.swap_bytes.unwrap_or(0),
        oom_kills: memory.oom_kills,
        pids: seen.pids.as_ref().map_or(0, |pids| pids.current),
        read_bytes: seen.io.iter().map(|device| device.read_bytes).sum(),
        write_bytes: seen.io.iter().map(|device| device.write_bytes).sum(),
    }
}
