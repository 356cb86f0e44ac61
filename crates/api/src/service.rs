//! What a daemon does, as a trait with one method a route: `control` implements it, the server
//! calls it, and a fake of it makes tests of both ends small.
//!
//! Every error is a [`Problem`] ready for the user. `wait` is how long a caller is willing to wait
//! for the outcome; without it the answer says what was accepted.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use model::token::Scope;
use tokio::sync::mpsc;

use crate::{
    Problem,
    stream::{Attach, Control},
    types::{
        Check, CpuStats, Event, Image, ImageBuild, ImageDetail, ImageDf, ImageGc, ImagePull,
        ImagePush, ImageTag, Info, Instance, InstanceCreate, InstanceDetail, Login, LoginCreate,
        Network, NetworkCreate, Operation, Process, Stats, StopRequest, Token, TokenCreate,
        TokenCreated, TopRow, Volume, VolumeCreate, WaitFor,
    },
};

/// What a method answers.
pub type Answer<T> = Result<T, Problem>;

/// Bytes as they come; an error ends them.
pub type ByteStream = BoxStream<'static, Result<Bytes, Problem>>;

/// Both ends of an attach or an exec.
#[derive(Debug)]
pub struct Socket {
    /// To the program; bounded.
    pub input: mpsc::Sender<FromClient>,
    /// From the program; the last message is [`ToClient::Control`] with an exit or a problem.
    pub output: mpsc::Receiver<ToClient>,
}

/// What a client sends after its first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    /// For standard input.
    Stdin(Bytes),
    /// A resize, a signal, or the end of input.
    Control(Control),
}

/// What a client is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToClient {
    /// From standard output, or the terminal.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// The end.
    Control(Control),
}

/// Which instances to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceFilter {
    /// Only those with this label: `key` or `key=value`.
    pub label: Option<String>,
    /// Only those with this status.
    pub status: Option<String>,
}

/// Which lines of a log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Goes on as more comes, until the instance is gone.
    pub follow: bool,
    /// Only so many lines.
    pub tail: Option<usize>,
    /// Only lines since then.
    pub since: Option<model::Timestamp>,
    /// Puts the time before each line.
    pub timestamps: bool,
    /// Only this stream: `stdout` or `stderr`.
    pub stream: Option<String>,
}

/// Form of an exported image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI image layout in a tar archive.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// The root file system, layers merged.
    RootFs,
}

/// What a daemon does.
#[async_trait]
#[allow(
    missing_docs,
    reason = "each method is the route of the same name in routes::ROUTES"
)]
pub trait Service: Send + Sync + 'static {
    /// The scope of a token, by its secret; `None` when it is not valid.
    async fn authenticate(&self, secret: &str) -> Answer<Option<Scope>>;
    /// Metrics in the Prometheus text format.
    async fn metrics(&self) -> Answer<String>;
    async fn info(&self) -> Answer<Info>;
    async fn doctor(&self) -> Answer<Vec<Check>>;
    async fn events(&self, since: Option<u64>, follow: bool) -> Answer<BoxStream<'static, Event>>;

    async fn list_instances(&self, filter: InstanceFilter) -> Answer<Vec<Instance>>;
    async fn create_instance(
        &self,
        request: InstanceCreate,
        wait: Option<Duration>,
    ) -> Answer<InstanceDetail>;
    async fn show_instance(&self, name: &str) -> Answer<InstanceDetail>;
    /// `generation` is what the caller saw, from `If-Match`.
    async fn set_instance(
        &self,
        name: &str,
        patch: serde_json::Value,
        generation: Option<u64>,
    ) -> Answer<InstanceDetail>;
    async fn delete_instance(
        &self,
        name: &str,
        force: bool,
        wait: Option<Duration>,
    ) -> Answer<Operation>;
    async fn start_instance(&self, name: &str, wait: Option<Duration>) -> Answer<InstanceDetail>;
    async fn stop_instance(
        &self,
        name: &str,
        request: StopRequest,
        wait: Option<Duration>,
    ) -> Answer<InstanceDetail>;
    async fn restart_instance(
        &self,
        name: &str,
        request: StopRequest,
        wait: Option<Duration>,
    ) -> Answer<InstanceDetail>;
    async fn pause_instance(&self, name: &str, wait: Option<Duration>) -> Answer<InstanceDetail>;
    async fn resume_instance(&self, name: &str, wait: Option<Duration>) -> Answer<InstanceDetail>;
    async fn signal_instance(&self, name: &str, signal: &str) -> Answer<()>;
    async fn wait_instance(
        &self,
        name: &str,
        wait_for: WaitFor,
        timeout: Duration,
    ) -> Answer<InstanceDetail>;
    async fn attach_instance(&self, name: &str, request: Attach) -> Answer<Socket>;
    async fn exec_instance(&self, name: &str, process: Process) -> Answer<Socket>;
    async fn instance_logs(&self, name: &str, query: LogQuery) -> Answer<ByteStream>;
    async fn instance_stats(&self, name: &str) -> Answer<Stats>;
    async fn instance_cpu_stats(&self, name: &str) -> Answer<CpuStats>;
    async fn all_stats(&self) -> Answer<Vec<Stats>>;
    async fn instance_top(&self, name: &str) -> Answer<Vec<TopRow>>;
    async fn get_files(&self, name: &str, path: &str) -> Answer<ByteStream>;
    async fn put_files(&self, name: &str, path: &str, tar: ByteStream) -> Answer<()>;

    async fn list_operations(&self) -> Answer<Vec<Operation>>;
    async fn show_operation(&self, id: &str, wait: Option<Duration>) -> Answer<Operation>;
    async fn watch_operation(&self, id: &str) -> Answer<BoxStream<'static, Operation>>;
    async fn cancel_operation(&self, id: &str) -> Answer<Operation>;
    async fn retry_operation(&self, id: &str) -> Answer<Operation>;

    async fn list_images(&self) -> Answer<Vec<Image>>;
    async fn image_df(&self) -> Answer<ImageDf>;
    async fn show_image(&self, image: &str) -> Answer<ImageDetail>;
    async fn delete_image(&self, image: &str) -> Answer<()>;
    async fn pull_image(&self, request: ImagePull) -> Answer<Operation>;
    async fn push_image(&self, request: ImagePush) -> Answer<Operation>;
    async fn build_image(&self, request: ImageBuild) -> Answer<Operation>;
    async fn import_image(&self, reference: Option<String>, tar: ByteStream) -> Answer<Operation>;
    async fn export_image(&self, image: &str, format: ExportFormat) -> Answer<ByteStream>;
    async fn tag_image(&self, request: ImageTag) -> Answer<Image>;
    async fn gc_images(&self) -> Answer<ImageGc>;

    async fn list_networks(&self) -> Answer<Vec<Network>>;
    async fn create_network(&self, request: NetworkCreate) -> Answer<Network>;
    async fn show_network(&self, name: &str) -> Answer<Network>;
    async fn delete_network(&self, name: &str) -> Answer<()>;

    async fn list_volumes(&self) -> Answer<Vec<Volume>>;
    async fn create_volume(&self, request: VolumeCreate) -> Answer<Volume>;
    async fn show_volume(&self, name: &str) -> Answer<Volume>;
    async fn delete_volume(&self, name: &str) -> Answer<()>;

    async fn list_logins(&self) -> Answer<Vec<Login>>;
    async fn log_in(&self, request: LoginCreate) -> Answer<Login>;
    async fn log_out(&self, registry: &str) -> Answer<()>;

    async fn list_tokens(&self) -> Answer<Vec<Token>>;
    async fn create_token(&self, request: TokenCreate) -> Answer<TokenCreated>;
    async fn revoke_token(&self, name: &str) -> Answer<()>;
}
