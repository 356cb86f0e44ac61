//! Makes a kernel for virtual machines in a store and prints where it is.
//!
//! `cargo run -p image --example kernel -- STORE AGENT`

use std::io::Write;

use image::{Event, Job, Store, vm::KernelRecipe};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(agent)) = (arguments.next(), arguments.next()) else {
        return Err("usage: kernel STORE AGENT".into());
    };
    let store = Store::open(root)?;
    let job = Job::new(
        |event| {
            if let Event::Note(line) = event {
                // Progress for a person; lost if nobody reads.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        },
        tokio_util::sync::CancellationToken::new(),
    );
    let kernel = store.build_kernel(&KernelRecipe::default(), agent.as_ref(), false, &job)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "release   {}", kernel.release)?;
    writeln!(output, "vmlinuz   {}", kernel.vmlinuz.display())?;
    writeln!(output, "initramfs {}", kernel.initramfs.display())?;
    Ok(())
}
