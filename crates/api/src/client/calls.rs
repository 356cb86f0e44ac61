//! One method for each route, in the order of the table. What each does is said there; what can
//! go wrong is said by [`super::ClientError`].

use bytes::Bytes;
use hyper::header;
use serde_json::Value;

use super::{ByteStream, Client, Lines, Session, error::Result, request::Call};
use crate::{
    Check, CpuStats, Event, Image, ImageBuild, ImageDetail, ImageDf, ImageGc, ImagePull, ImagePush,
    ImageTag, Info, Instance, InstanceCreate, InstanceDetail, Login, LoginCreate, Network,
    NetworkCreate, Operation, Process, Stats, StopRequest, Token, TokenCreate, TokenCreated,
    TopRow, Volume, VolumeCreate, WaitFor, stream::Attach,
};

/// Which events to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventsQuery {
    /// Sequence number after which to begin; only new ones when absent.
    pub since: Option<u64>,
    /// Ends the stream at the present.
    pub until_now: bool,
}

/// Which part of a log to send.
#[derive(Debug, Clone, Default)]
pub struct LogsQuery {
    /// Goes on as more comes.
    pub follow: bool,
    /// Only so many lines.
    pub tail: Option<u64>,
    /// Only lines since then (RFC 3339).
    pub since: Option<String>,
    /// Puts the time before each line.
    pub timestamps: bool,
    /// `stdout` or `stderr` for only one.
    pub stream: Option<String>,
}

/// Form of an exported image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// OCI image layout.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// The root file system alone.
    Rootfs,
}

impl ExportFormat {
    /// As in the query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Rootfs => "rootfs",
        }
    }
}

impl WaitFor {
    /// As in the query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Healthy => "healthy",
            Self::Removed => "removed",
        }
    }
}

const fn flag(set: bool) -> Option<&'static str> {
    if set { Some("true") } else { None }
}

#[expect(
    missing_docs,
    reason = "each is the route of its name, described in the table"
)]
#[expect(clippy::missing_errors_doc, reason = "all alike; the module says it")]
impl Client {
    pub async fn info(&self) -> Result<Info> {
        self.document(Call::new("info", None)).await
    }

    pub async fn doctor(&self) -> Result<Vec<Check>> {
        self.document(Call::new("doctor", None)).await
    }

    pub async fn openapi(&self) -> Result<Value> {
        self.document(Call::new("openapi", None)).await
    }

    pub async fn metrics(&self) -> Result<Bytes> {
        self.bytes(Call::new("metrics", None)).await
    }

    pub async fn events(&self, query: EventsQuery) -> Result<Lines<Event>> {
        let since = query.since.map(|since| since.to_string());
        let mut call = Call::new("events", None).query_some("since", since.as_deref());
        if query.until_now {
            call = call.query("follow", "false");
        }
        self.lines(call).await
    }

    pub async fn list_instances(
        &self,
        label: Option<&str>,
        status: Option<&str>,
    ) -> Result<Vec<Instance>> {
        let call = Call::new("list_instances", None)
            .query_some("label", label)
            .query_some("status", status);
        self.document(call).await
    }

    pub async fn create_instance(
        &self,
        create: &InstanceCreate,
        wait_s: Option<u64>,
    ) -> Result<InstanceDetail> {
        let call = Call::new("create_instance", None).wait("wait_s", wait_s);
        self.document(call.json(create)?).await
    }

    pub async fn show_instance(&self, name: &str) -> Result<InstanceDetail> {
        self.document(Call::new("show_instance", Some(name))).await
    }

    /// `patch` is a merge patch against the spec; with `if_match` only a spec of that generation
    /// is changed.
    pub async fn set_instance(
        &self,
        name: &str,
        patch: &Value,
        if_match: Option<u64>,
    ) -> Result<InstanceDetail> {
        let mut call = Call::new("set_instance", Some(name))
            .json(patch)?
            .media("application/merge-patch+json");
        if let Some(generation) = if_match {
            call = call.header(header::IF_MATCH, format!("\"{generation}\""));
        }
        self.document(call).await
    }

    pub async fn delete_instance(
        &self,
        name: &str,
        force: bool,
        wait_s: Option<u64>,
    ) -> Result<Operation> {
        let call = Call::new("delete_instance", Some(name))
            .query_some("force", flag(force))
            .wait("wait_s", wait_s);
        self.document(call).await
    }

    pub async fn start_instance(&self, name: &str, wait_s: Option<u64>) -> Result<InstanceDetail> {
        let call = Call::new("start_instance", Some(name));
        self.document(call.wait("wait_s", wait_s)).await
    }

    pub async fn stop_instance(
        &self,
        name: &str,
        stop: &StopRequest,
        wait_s: Option<u64>,
    ) -> Result<InstanceDetail> {
        let call = Call::new("stop_instance", Some(name)).wait("wait_s", wait_s);
        self.document(call.json(stop)?).await
    }

    pub async fn restart_instance(
        &self,
        name: &str,
        stop: &StopRequest,
        wait_s: Option<u64>,
    ) -> Result<InstanceDetail> {
        let call = Call::new("restart_instance", Some(name)).wait("wait_s", wait_s);
        self.document(call.json(stop)?).await
    }

    pub async fn pause_instance(&self, name: &str, wait_s: Option<u64>) -> Result<InstanceDetail> {
        let call = Call::new("pause_instance", Some(name));
        self.document(call.wait("wait_s", wait_s)).await
    }

    pub async fn resume_instance(&self, name: &str, wait_s: Option<u64>) -> Result<InstanceDetail> {
        let call = Call::new("resume_instance", Some(name));
        self.document(call.wait("wait_s", wait_s)).await
    }

    pub async fn signal_instance(&self, name: &str, signal: &str) -> Result<()> {
        let call = Call::new("signal_instance", Some(name)).query("signal", signal);
        self.nothing(call).await
    }

    pub async fn wait_instance(
        &self,
        name: &str,
        until: WaitFor,
        timeout_s: u64,
    ) -> Result<InstanceDetail> {
        let call = Call::new("wait_instance", Some(name))
            .query("for", until.as_str())
            .wait("timeout_s", Some(timeout_s));
        self.document(call).await
    }

    pub async fn attach_instance(&self, name: &str, attach: &Attach) -> Result<Session> {
        self.open(Call::new("attach_instance", Some(name)), attach)
            .await
    }

    pub async fn exec_instance(&self, name: &str, process: &Process) -> Result<Session> {
        self.open(Call::new("exec_instance", Some(name)), process)
            .await
    }

    pub async fn instance_logs(&self, name: &str, query: &LogsQuery) -> Result<ByteStream> {
        let tail = query.tail.map(|lines| lines.to_string());
        let call = Call::new("instance_logs", Some(name))
            .query_some("follow", flag(query.follow))
            .query_some("tail", tail.as_deref())
            .query_some("since", query.since.as_deref())
            .query_some("timestamps", flag(query.timestamps))
            .query_some("stream", query.stream.as_deref());
        self.stream(call).await
    }

    pub async fn instance_stats(&self, name: &str) -> Result<Stats> {
        self.document(Call::new("instance_stats", Some(name))).await
    }

    pub async fn instance_cpu_stats(&self, name: &str) -> Result<CpuStats> {
        let call = Call::new("instance_cpu_stats", Some(name));
        self.document(call).await
    }

    pub async fn all_stats(&self) -> Result<Vec<Stats>> {
        self.document(Call::new("all_stats", None)).await
    }

    pub async fn instance_top(&self, name: &str) -> Result<Vec<TopRow>> {
        self.document(Call::new("instance_top", Some(name))).await
    }

    pub async fn get_files(&self, name: &str, path: &str) -> Result<ByteStream> {
        let call = Call::new("get_files", Some(name)).query("path", path);
        self.stream(call).await
    }

    pub async fn put_files(
        &self,
        name: &str,
        path: &str,
        tar: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        let call = Call::new("put_files", Some(name))
            .query("path", path)
            .stream("application/x-tar", tar)
            .patient();
        self.nothing(call).await
    }

    pub async fn list_operations(&self) -> Result<Vec<Operation>> {
        self.document(Call::new("list_operations", None)).await
    }

    pub async fn show_operation(&self, id: &str, wait_s: Option<u64>) -> Result<Operation> {
        let call = Call::new("show_operation", Some(id));
        self.document(call.wait("wait_s", wait_s)).await
    }

    pub async fn watch_operation(&self, id: &str) -> Result<Lines<Operation>> {
        self.lines(Call::new("watch_operation", Some(id))).await
    }

    pub async fn cancel_operation(&self, id: &str) -> Result<Operation> {
        self.document(Call::new("cancel_operation", Some(id))).await
    }

    pub async fn retry_operation(&self, id: &str) -> Result<Operation> {
        self.document(Call::new("retry_operation", Some(id))).await
    }

    pub async fn list_images(&self) -> Result<Vec<Image>> {
        self.document(Call::new("list_images", None)).await
    }

    pub async fn image_df(&self) -> Result<ImageDf> {
        self.document(Call::new("image_df", None)).await
    }

    pub async fn show_image(&self, image: &str) -> Result<ImageDetail> {
        let call = Call::new("show_image", None).query("image", image);
        self.document(call).await
    }

    pub async fn delete_image(&self, image: &str) -> Result<()> {
        let call = Call::new("delete_image", None).query("image", image);
        self.nothing(call).await
    }

    pub async fn pull_image(&self, pull: &ImagePull) -> Result<Operation> {
        self.document(Call::new("pull_image", None).json(pull)?)
            .await
    }

    pub async fn push_image(&self, push: &ImagePush) -> Result<Operation> {
        self.document(Call::new("push_image", None).json(push)?)
            .await
    }

    pub async fn build_image(&self, build: &ImageBuild) -> Result<Operation> {
        self.document(Call::new("build_image", None).json(build)?)
            .await
    }

    pub async fn import_image(
        &self,
        reference: Option<&str>,
        archive: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Operation> {
        let call = Call::new("import_image", None)
            .query_some("reference", reference)
            .stream("application/x-tar", archive)
            .patient();
        self.document(call).await
    }

    pub async fn export_image(&self, image: &str, format: ExportFormat) -> Result<ByteStream> {
        let call = Call::new("export_image", None)
            .query("image", image)
            .query("format", format.as_str());
        self.stream(call).await
    }

    pub async fn tag_image(&self, tag: &ImageTag) -> Result<Image> {
        self.document(Call::new("tag_image", None).json(tag)?).await
    }

    pub async fn gc_images(&self) -> Result<ImageGc> {
        self.document(Call::new("gc_images", None).patient()).await
    }

    pub async fn list_networks(&self) -> Result<Vec<Network>> {
        self.document(Call::new("list_networks", None)).await
    }

    pub async fn create_network(&self, create: &NetworkCreate) -> Result<Network> {
        self.document(Call::new("create_network", None).json(create)?)
            .await
    }

    pub async fn show_network(&self, name: &str) -> Result<Network> {
        self.document(Call::new("show_network", Some(name))).await
    }

    pub async fn delete_network(&self, name: &str) -> Result<()> {
        self.nothing(Call::new("delete_network", Some(name))).await
    }

    pub async fn list_volumes(&self) -> Result<Vec<Volume>> {
        self.document(Call::new("list_volumes", None)).await
    }

    pub async fn create_volume(&self, create: &VolumeCreate) -> Result<Volume> {
        self.document(Call::new("create_volume", None).json(create)?)
            .await
    }

    pub async fn show_volume(&self, name: &str) -> Result<Volume> {
        self.document(Call::new("show_volume", Some(name))).await
    }

    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        self.nothing(Call::new("delete_volume", Some(name))).await
    }

    pub async fn list_logins(&self) -> Result<Vec<Login>> {
        self.document(Call::new("list_logins", None)).await
    }

    pub async fn log_in(&self, login: &LoginCreate) -> Result<Login> {
        self.document(Call::new("log_in", None).json(login)?).await
    }

    pub async fn log_out(&self, registry: &str) -> Result<()> {
        self.nothing(Call::new("log_out", Some(registry))).await
    }

    pub async fn list_tokens(&self) -> Result<Vec<Token>> {
        self.document(Call::new("list_tokens", None)).await
    }

    pub async fn create_token(&self, create: &TokenCreate) -> Result<TokenCreated> {
        self.document(Call::new("create_token", None).json(create)?)
            .await
    }

    pub async fn revoke_token(&self, name: &str) -> Result<()> {
        self.nothing(Call::new("revoke_token", Some(name))).await
    }

    async fn stream(&self, call: Call) -> Result<ByteStream> {
        let pending = self.send(call).await?;
        Ok(ByteStream::new(self.address(), pending))
    }

    async fn lines<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<Lines<T>> {
        Ok(Lines::new(self.stream(call).await?))
    }
}
