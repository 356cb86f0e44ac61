//! Whatever goes on after the answer began: events, logs, archives, attach and exec.

use api::{Event, Problem, service::LogQuery};
use futures::StreamExt as _;

use crate::{
    call::Call,
    reply::{Reply, stopping},
    socket,
};

pub(super) async fn events(mut call: Call) -> Result<Reply, Problem> {
    let since = call.query.number("since")?;
    let follow = call.query.flag("follow", true)?;
    let events = call.service().events(since, follow).await?;
    let stop = call.shared.stop.clone();
    Ok(Reply::lines(events, stop, |last| Some(farewell(last?))))
}

/// The last event of a daemon that stops. It has the number of the one before it, so that a
/// follower that comes back with that number misses nothing.
fn farewell(last: &Event) -> Event {
    Event {
        kind: "daemon.stopping".to_owned(),
        resource: "daemon".to_owned(),
        message: stopping().detail,
        attributes: Default::default(),
        ..last.clone()
    }
}

pub(super) async fn watch_operation(call: Call) -> Result<Reply, Problem> {
    let operations = call.service().watch_operation(&call.name).await?;
    let stop = call.shared.stop.clone();
    Ok(Reply::lines(operations, stop, |_| None))
}

pub(super) async fn logs(mut call: Call) -> Result<Reply, Problem> {
    let streams = [("stdout", "stdout"), ("stderr", "stderr")];
    let query = LogQuery {
        follow: call.query.flag("follow", false)?,
        tail: call.query.number("tail")?,
        since: call.query.timestamp("since")?,
        timestamps: call.query.flag("timestamps", false)?,
        stream: call
            .query
            .choice("stream", &streams)?
            .map(ToOwned::to_owned),
    };
    let stop = call.shared.stop.clone();
    let follow = query.follow;
    let lines = call.service().instance_logs(&call.name, query).await?;
    if !follow {
        return Ok(Reply::Stream(lines));
    }
    // What is followed has no end of its own: it is cut off, not ended, when the server stops.
    let cut = futures::stream::once(async move {
        stop.cancelled().await;
        Err(stopping())
    });
    let both = futures::stream::select(
        lines.map(Some).chain(futures::stream::iter([None])),
        cut.map(Some),
    );
    let until_end = both
        .take_while(|item| std::future::ready(item.is_some()))
        .filter_map(std::future::ready);
    Ok(Reply::Stream(until_end.boxed()))
}

pub(super) async fn get_files(mut call: Call) -> Result<Reply, Problem> {
    let path = call.query.required("path")?;
    let tar = call.service().get_files(&call.name, &path).await?;
    Ok(Reply::Stream(tar))
}

pub(super) async fn put_files(mut call: Call) -> Result<Reply, Problem> {
    let path = call.query.required("path")?;
    let tar = call.stream();
    call.service().put_files(&call.name, &path, tar).await?;
    Ok(Reply::Empty)
}

pub(super) async fn attach(call: Call) -> Result<Reply, Problem> {
    socket::open(call, |service, name, request| {
        Box::pin(async move { service.attach_instance(&name, request).await })
    })
}

pub(super) async fn exec(call: Call) -> Result<Reply, Problem> {
    socket::open(call, |service, name, process| {
        Box::pin(async move { service.exec_instance(&name, process).await })
    })
}
