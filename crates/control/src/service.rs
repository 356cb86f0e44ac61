//! [`Service`] for [`Control`]: each route's method calls the one that knows.

use std::time::Duration;

use api::{
    Check, CpuStats, Event, Image, ImageBuild, ImageDetail, ImageDf, ImageGc, ImagePull, ImagePush,
    ImageTag, Info, Instance, InstanceCreate, InstanceDetail, Login, LoginCreate, Network,
    NetworkCreate, Operation, Process, Stats, StopRequest, Token, TokenCreate, TokenCreated,
    TopRow, Volume, VolumeCreate, WaitFor,
    service::{Answer, ByteStream, ExportFormat, InstanceFilter, LogQuery, Service, Socket},
    stream::Attach,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use model::token::Scope;

use crate::Control;

type Wait = Option<Duration>;

#[async_trait]
impl Service for Control {
    async fn authenticate(&self, secret: &str) -> Answer<Option<Scope>> {
        self.scope_of(secret).await
    }

    async fn metrics(&self) -> Answer<String> {
        self.metrics_text().await
    }

    async fn info(&self) -> Answer<Info> {
        self.about().await
    }

    async fn doctor(&self) -> Answer<Vec<Check>> {
        Ok(self.inner.identity.checks.clone())
    }

    async fn events(&self, since: Option<u64>, follow: bool) -> Answer<BoxStream<'static, Event>> {
        Ok(self.inner.events.listen(since, follow))
    }

    async fn list_instances(&self, filter: InstanceFilter) -> Answer<Vec<Instance>> {
        self.list(&filter).await
    }

    async fn create_instance(&self, request: InstanceCreate, wait: Wait) -> Answer<InstanceDetail> {
        self.create(request, wait).await
    }

    async fn show_instance(&self, name: &str) -> Answer<InstanceDetail> {
        let entry = self.find(name).await?;
        self.detail(&entry.value).await
    }

    async fn set_instance(
        &self,
        name: &str,
        patch: serde_json::Value,
        generation: Option<u64>,
    ) -> Answer<InstanceDetail> {
        self.set(name, &patch, generation).await
    }

    async fn delete_instance(&self, name: &str, force: bool, wait: Wait) -> Answer<Operation> {
        self.delete(name, force, wait).await
    }

    async fn start_instance(&self, name: &str, wait: Wait) -> Answer<InstanceDetail> {
        self.start(name, wait).await
    }

    async fn stop_instance(
        &self,
        name: &str,
        request: StopRequest,
        wait: Wait,
    ) -> Answer<InstanceDetail> {
        self.stop(name, request, wait).await
    }

    async fn restart_instance(
        &self,
        name: &str,
        request: StopRequest,
        wait: Wait,
    ) -> Answer<InstanceDetail> {
        self.restart(name, request, wait).await
    }

    async fn pause_instance(&self, name: &str, wait: Wait) -> Answer<InstanceDetail> {
        self.pause(name, true, wait).await
    }

    async fn resume_instance(&self, name: &str, wait: Wait) -> Answer<InstanceDetail> {
        self.pause(name, false, wait).await
    }

    async fn signal_instance(&self, name: &str, signal: &str) -> Answer<()> {
        self.signal(name, signal).await
    }

    async fn wait_instance(
        &self,
        name: &str,
        wait_for: WaitFor,
        timeout: Duration,
    ) -> Answer<InstanceDetail> {
        self.wait(name, wait_for, timeout).await
    }

    async fn attach_instance(&self, name: &str, request: Attach) -> Answer<Socket> {
        self.attach(name, request).await
    }

    async fn exec_instance(&self, name: &str, process: Process) -> Answer<Socket> {
        self.exec(name, process).await
    }

    async fn instance_logs(&self, name: &str, query: LogQuery) -> Answer<ByteStream> {
        self.logs(name, query).await
    }

    async fn instance_stats(&self, name: &str) -> Answer<Stats> {
        self.stats(name).await
    }

    async fn instance_cpu_stats(&self, name: &str) -> Answer<CpuStats> {
        self.cpu_stats(name).await
    }

    async fn all_stats(&self) -> Answer<Vec<Stats>> {
        self.stats_of_all().await
    }

    async fn instance_top(&self, name: &str) -> Answer<Vec<TopRow>> {
        self.top(name).await
    }

    async fn get_files(&self, name: &str, path: &str) -> Answer<ByteStream> {
        self.read_files(name, path).await
    }

    async fn put_files(&self, name: &str, path: &str, tar: ByteStream) -> Answer<()> {
        self.write_files(name, path, tar).await
    }

    async fn list_operations(&self) -> Answer<Vec<Operation>> {
        self.operations().await
    }

    async fn show_operation(&self, id: &str, wait: Wait) -> Answer<Operation> {
        self.show_op(id, wait).await
    }

    async fn watch_operation(&self, id: &str) -> Answer<BoxStream<'static, Operation>> {
        self.watch_op(id).await
    }

    async fn cancel_operation(&self, id: &str) -> Answer<Operation> {
        self.cancel_op(id).await
    }

    async fn retry_operation(&self, id: &str) -> Answer<Operation> {
        self.retry_op(id).await
    }

    async fn list_images(&self) -> Answer<Vec<Image>> {
        self.list_of_images().await
    }

    async fn image_df(&self) -> Answer<ImageDf> {
        self.disk_usage().await
    }

    async fn show_image(&self, image: &str) -> Answer<ImageDetail> {
        self.image_detail(image).await
    }

    async fn delete_image(&self, image: &str) -> Answer<()> {
        self.delete_image_name(image).await
    }

    async fn pull_image(&self, request: ImagePull) -> Answer<Operation> {
        self.pull(request).await
    }

    async fn push_image(&self, request: ImagePush) -> Answer<Operation> {
        self.push(request).await
    }

    async fn build_image(&self, request: ImageBuild) -> Answer<Operation> {
        self.build(request).await
    }

    async fn import_image(&self, reference: Option<String>, tar: ByteStream) -> Answer<Operation> {
        self.import(reference, tar).await
    }

    async fn export_image(&self, image: &str, format: ExportFormat) -> Answer<ByteStream> {
        self.export(image, format).await
    }

    async fn tag_image(&self, request: ImageTag) -> Answer<Image> {
        self.tag(request).await
    }

    async fn gc_images(&self) -> Answer<ImageGc> {
        self.collect_garbage().await
    }

    async fn list_networks(&self) -> Answer<Vec<Network>> {
        self.networks().await
    }

    async fn create_network(&self, request: NetworkCreate) -> Answer<Network> {
        self.new_network(request).await
    }

    async fn show_network(&self, name: &str) -> Answer<Network> {
        self.network(name).await
    }

    async fn delete_network(&self, name: &str) -> Answer<()> {
        self.remove_network(name).await
    }

    async fn list_volumes(&self) -> Answer<Vec<Volume>> {
        self.volumes().await
    }

    async fn create_volume(&self, request: VolumeCreate) -> Answer<Volume> {
        self.new_volume(request).await
    }

    async fn show_volume(&self, name: &str) -> Answer<Volume> {
        self.volume(name).await
    }

    async fn delete_volume(&self, name: &str) -> Answer<()> {
        self.remove_volume(name).await
    }

    async fn list_logins(&self) -> Answer<Vec<Login>> {
        self.logins().await
    }

    async fn log_in(&self, request: LoginCreate) -> Answer<Login> {
        self.new_login(request).await
    }

    async fn log_out(&self, registry: &str) -> Answer<()> {
        self.forget_login(registry).await
    }

    async fn list_tokens(&self) -> Answer<Vec<Token>> {
        self.tokens().await
    }

    async fn create_token(&self, request: TokenCreate) -> Answer<TokenCreated> {
        self.new_token(request).await
    }

    async fn revoke_token(&self, name: &str) -> Answer<()> {
        self.revoke(name).await
    }
}
