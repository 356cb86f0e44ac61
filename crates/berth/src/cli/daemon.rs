//! Flags of the roles that do not talk to a daemon but are one: `daemon` and `recover`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// Where everything of one daemon hangs.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// Where everything durable is
    #[arg(long, value_name = "DIR", default_value_os_t = from_env("BERTH_ROOT", "/var/lib/berth"), value_hint = ValueHint::DirPath)]
    pub root: PathBuf,
    /// Where everything that ends with this run of the host is, the socket among it
    #[arg(long, value_name = "DIR", default_value_os_t = from_env("BERTH_RUN_DIR", "/run/berth"), value_hint = ValueHint::DirPath)]
    pub run_dir: PathBuf,
}

/// A path from the environment, or the usual one.
fn from_env(name: &str, usual: &str) -> PathBuf {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(usual), PathBuf::from)
}

/// Form of the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON document a line.
    Json,
}

/// Flags of `berth daemon`.
#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Also listen on TCP with TLS; callers need a token
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<std::net::SocketAddr>,
    /// Certificate chain for --listen, in PEM; a self-signed one is made when not given
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,
    /// Group that may use the socket
    #[arg(long, value_name = "NAME", default_value = "berth")]
    pub group: String,
    /// Prefix of network interfaces, rules and control groups; two daemons need two
    #[arg(long, value_name = "PREFIX", default_value = "berth")]
    pub prefix: String,
    /// Keep networks in this network namespace instead of the daemon's own
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub netns: Option<PathBuf>,
    /// Registries to ask, their mirrors and credentials
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub registries: Option<PathBuf>,
    /// The runtime binary, with berth-vmm and berth-agent beside it; berth-oci beside this one when
    /// not given
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub runtime: Option<PathBuf>,
    /// What to log, such as info or node=debug,info
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Form of the log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Flags of `berth recover`.
#[derive(Debug, Clone, Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only say what would be found
    #[arg(long)]
    pub dry_run: bool,
}
