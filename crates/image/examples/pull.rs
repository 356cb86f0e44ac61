//! Pulls an image into a store and says how long it took: `pull ROOT REFERENCE`.
//!
//! For measuring beside other tools; prints one JSON line.

use std::{io::Write, time::Instant};

use image::{Job, PullOptions, Registries, RegistryConfig, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: pull ROOT REFERENCE".into());
    };
    let start = Instant::now();
    let store = Store::open(root)?;
    let registries = Registries::new(RegistryConfig::default())?;
    let ready = start.elapsed();
    let pulled = store
        .pull(
            &registries,
            &name.parse()?,
            &PullOptions::default(),
            &Job::silent(),
        )
        .await?;
    writeln!(
        std::io::stdout().lock(),
        r#"{{"image":"{}","fetched_bytes":{},"open_ms":{},"total_ms":{}}}"#,
        pulled.image,
        pulled.fetched_bytes,
        ready.as_millis(),
        start.elapsed().as_millis()
    )?;
    Ok(())
}
