//! Instances.

use std::time::Duration;

use api::{InstanceDetail, Problem, WaitFor, service::InstanceFilter};

use crate::{call::Call, reply::Reply};

fn detail(detail: &InstanceDetail) -> Result<Reply, Problem> {
    Reply::versioned(detail, detail.generation)
}

pub(super) async fn list(mut call: Call) -> Result<Reply, Problem> {
    let filter = InstanceFilter {
        label: call.query.text("label"),
        status: call.query.text("status"),
    };
    Reply::json(&call.service().list_instances(filter).await?)
}

pub(super) async fn create(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    let request = call.json().await?;
    detail(&call.service().create_instance(request, wait).await?)
}

pub(super) async fn show(call: Call) -> Result<Reply, Problem> {
    detail(&call.service().show_instance(&call.name).await?)
}

pub(super) async fn set(mut call: Call) -> Result<Reply, Problem> {
    let generation = call.if_match()?;
    let patch = call.json().await?;
    let service = call.service();
    detail(&service.set_instance(&call.name, patch, generation).await?)
}

pub(super) async fn delete(mut call: Call) -> Result<Reply, Problem> {
    let (force, wait) = (call.query.flag("force", false)?, call.wait()?);
    let operation = call.service().delete_instance(&call.name, force, wait);
    Reply::json(&operation.await?)
}

pub(super) async fn start(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    detail(&call.service().start_instance(&call.name, wait).await?)
}

pub(super) async fn stop(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    let request = call.json().await?;
    let service = call.service();
    detail(&service.stop_instance(&call.name, request, wait).await?)
}

pub(super) async fn restart(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    let request = call.json().await?;
    let service = call.service();
    detail(&service.restart_instance(&call.name, request, wait).await?)
}

pub(super) async fn pause(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    detail(&call.service().pause_instance(&call.name, wait).await?)
}

pub(super) async fn resume(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    detail(&call.service().resume_instance(&call.name, wait).await?)
}

pub(super) async fn signal(mut call: Call) -> Result<Reply, Problem> {
    let signal = call.query.required("signal")?;
    let service = call.service();
    service.signal_instance(&call.name, &signal).await?;
    Ok(Reply::Empty)
}

pub(super) async fn wait(mut call: Call) -> Result<Reply, Problem> {
    let wait_for = [
        ("settled", WaitFor::Settled),
        ("running", WaitFor::Running),
        ("stopped", WaitFor::Stopped),
        ("healthy", WaitFor::Healthy),
        ("removed", WaitFor::Removed),
    ];
    let wait_for = call.query.choice("for", &wait_for)?;
    let wait_for = wait_for.unwrap_or(WaitFor::Settled);
    let timeout = call.query.seconds("timeout_s")?;
    let timeout = timeout.unwrap_or(Duration::from_secs(30));
    let service = call.service();
    detail(&service.wait_instance(&call.name, wait_for, timeout).await?)
}

pub(super) async fn stats(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().instance_stats(&call.name).await?)
}

pub(super) async fn cpu_stats(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().instance_cpu_stats(&call.name).await?)
}

pub(super) async fn all_stats(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().all_stats().await?)
}

pub(super) async fn top(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().instance_top(&call.name).await?)
}
