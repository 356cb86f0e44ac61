//! One small function a route: reads what the route takes, calls the service, writes the answer.
//! Nothing is decided here.

mod images;
mod instances;
mod nouns;
mod streams;
mod system;

use api::Problem;
use futures::future::BoxFuture;

use crate::{call::Call, reply::Reply};

/// What serves a route.
pub(crate) type Handler = fn(Call) -> BoxFuture<'static, Result<Reply, Problem>>;

macro_rules! handlers {
    ($($id:literal => $function:path,)*) => {
        &[$(($id, |call| Box::pin($function(call)))),*]
    };
}

/// Every handler, by the id of its route.
pub(crate) const HANDLERS: &[(&str, Handler)] = handlers! {
    "info" => system::info,
    "doctor" => system::doctor,
    "openapi" => system::openapi,
    "metrics" => system::metrics,
    "events" => streams::events,
    "list_instances" => instances::list,
    "create_instance" => instances::create,
    "show_instance" => instances::show,
    "set_instance" => instances::set,
    "delete_instance" => instances::delete,
    "start_instance" => instances::start,
    "stop_instance" => instances::stop,
    "restart_instance" => instances::restart,
    "pause_instance" => instances::pause,
    "resume_instance" => instances::resume,
    "signal_instance" => instances::signal,
    "wait_instance" => instances::wait,
    "attach_instance" => streams::attach,
    "exec_instance" => streams::exec,
    "instance_logs" => streams::logs,
    "instance_stats" => instances::stats,
    "instance_cpu_stats" => instances::cpu_stats,
    "all_stats" => instances::all_stats,
    "instance_top" => instances::top,
    "get_files" => streams::get_files,
    "put_files" => streams::put_files,
    "list_operations" => system::list_operations,
    "show_operation" => system::show_operation,
    "watch_operation" => streams::watch_operation,
    "cancel_operation" => system::cancel_operation,
    "retry_operation" => system::retry_operation,
    "list_images" => images::list,
    "image_df" => images::df,
    "show_image" => images::show,
    "delete_image" => images::delete,
    "pull_image" => images::pull,
    "push_image" => images::push,
    "build_image" => images::build,
    "import_image" => images::import,
    "export_image" => images::export,
    "tag_image" => images::tag,
    "gc_images" => images::gc,
    "list_networks" => nouns::list_networks,
    "create_network" => nouns::create_network,
    "show_network" => nouns::show_network,
    "delete_network" => nouns::delete_network,
    "list_volumes" => nouns::list_volumes,
    "create_volume" => nouns::create_volume,
    "show_volume" => nouns::show_volume,
    "delete_volume" => nouns::delete_volume,
    "list_logins" => nouns::list_logins,
    "log_in" => nouns::log_in,
    "log_out" => nouns::log_out,
    "list_tokens" => nouns::list_tokens,
    "create_token" => nouns::create_token,
    "revoke_token" => nouns::revoke_token,
};
