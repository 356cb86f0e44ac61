//! `show --cpu-stats`: what the software CPU of a virtual machine counts.

use std::io::{self, Write};

use api::CpuStats;

use crate::cli::{
    Context,
    exit::Outcome,
    output::{self, Format, ShowArgs},
    table::{self, Cell},
};

/// Shows the counters of one instance.
pub async fn show(cx: &Context, args: ShowArgs, name: &str) -> Outcome {
    let stats = cx.client.instance_cpu_stats(name).await?;
    let format = if cx.quiet { Format::Name } else { args.output };
    if !matches!(format, Format::Table | Format::Wide) {
        return output::one(cx, args, name, &stats, |_| Vec::new());
    }
    let mut out = io::stdout().lock();
    let vcpus = stats.counters.iter().map(|it| it.vcpus.len()).max();
    let each = if format == Format::Wide { vcpus } else { None };
    let each: Vec<String> = (0..each.unwrap_or(0))
        .map(|it| format!("VCPU {it}"))
        .collect();
    let mut titles = vec!["COUNTER", "COUNT"];
    titles.extend(each.iter().map(String::as_str));
    titles.push("MEANING");
    table::write(
        &mut out,
        Some(&titles),
        &rows(&stats, each.len()),
        cx.color_out,
    )?;
    if !stats.untranslated.is_empty() {
        writeln!(out)?;
        let met = |it: &api::Untranslated| vec![Cell::from(&it.form), number(it.count)];
        let met: Vec<_> = stats.untranslated.iter().map(met).collect();
        table::write(
            &mut out,
            Some(&["NOT TRANSLATED", "MET"]),
            &met,
            cx.color_out,
        )?;
    }
    out.flush()?;
    Ok(())
}

/// A row for each counter, with the number of each of the first vCPUs.
fn rows(stats: &CpuStats, vcpus: usize) -> Vec<Vec<Cell>> {
    let row = |counter: &api::CpuCounter| {
        let sum = counter
            .vcpus
            .iter()
            .fold(0_u64, |sum, it| sum.wrapping_add(*it));
        let mut cells = vec![Cell::from(&counter.name), number(sum)];
        cells.extend(counter.vcpus.iter().take(vcpus).map(|it| number(*it)));
        cells.push(Cell::from(&counter.meaning));
        cells
    };
    stats.counters.iter().map(row).collect()
}

fn number(count: u64) -> Cell {
    Cell::from(count.to_string())
}
