//! How long the default profile takes: made and compiled, for x86_64 with x86 and x32.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

fn main() -> std::io::Result<()> {
    let rounds = 2000u32;
    let mut best = u128::MAX;
    let mut total = 0;
    let mut instructions = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        let policy = seccomp::default_profile(black_box(&["CAP_CHOWN", "CAP_NET_RAW"]));
        let program = seccomp::compile(&policy).map_err(std::io::Error::other)?;
        let took = start.elapsed().as_nanos();
        instructions = black_box(program).code.len();
        best = best.min(took);
        total += took;
    }
    let mean = total / u128::from(rounds);
    writeln!(
        std::io::stdout().lock(),
        "default profile to BPF: mean {mean} ns, best {best} ns, {instructions} instructions"
    )
}
