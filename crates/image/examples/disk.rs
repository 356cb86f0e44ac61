//! Makes a recipe's root disk in a store and prints where it is.
//!
//! `cargo run -p image --example disk -- STORE busybox|debian`

use std::io::Write;

use image::{DebianRecipe, Event, Job, Recipe, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let recipe = match (arguments.next(), arguments.next().as_deref()) {
        (Some(root), Some("busybox")) => (root, Recipe::Busybox),
        (Some(root), Some("debian")) => {
            let recipe = DebianRecipe {
                suite: "bookworm".to_owned(),
                packages: Vec::new(),
                systemd: true,
                machine: false,
                mirror: None,
            };
            (root, Recipe::Debian(recipe))
        }
        _ => return Err("usage: disk STORE busybox|debian".into()),
    };
    let (root, recipe) = recipe;
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
    let built = store.build_recipe(&recipe, &recipe.default_name()?, false, &job)?;
    let disk = store.root_disk(&built.image, &job)?;
    writeln!(std::io::stdout(), "{} {}", disk.path.display(), disk.bytes)?;
    Ok(())
}
