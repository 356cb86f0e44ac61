//! `berth token …`

use api::{Token, TokenCreate};
use clap::{Args, Subcommand, ValueEnum};

use super::{
    Context,
    exit::Outcome,
    human,
    output::{self, Column, ListArgs, Row, column},
    parse,
    table::Cell,
};

/// The verbs of tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for callers from other machines; its secret is shown once
    Create(CreateArgs),
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Take tokens back
    #[command(visible_alias = "rm")]
    Revoke {
        /// The tokens
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// What a token allows.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Scope {
    /// Look at everything but secrets
    #[default]
    Read,
    /// Create, change, use and delete
    Operate,
    /// All of it, tokens included
    Admin,
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it allows
    #[arg(long, value_enum, default_value_t)]
    scope: Scope,
    /// Time until it stops working, such as 30d; never when not given
    #[arg(long, value_name = "TIME", value_parser = parse::duration::duration)]
    ttl: Option<std::time::Duration>,
    /// A name for people
    name: String,
}

impl Row for Token {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |t, _| Cell::from(&t.name)),
        column("SCOPE", |t, _| Cell::from(&t.scope)),
        column("AGE", |t, now| Cell::from(human::age(&t.created_at, now))),
        column("EXPIRES", |t, _| {
            Cell::from(t.expires_at.as_deref().unwrap_or("never"))
        }),
    ];
    const TOPIC: &'static str = "token.";

    fn name(&self) -> &str {
        &self.name
    }
}

impl TokenCommand {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        match self {
            Self::Create(args) => {
                let scope = match args.scope {
                    Scope::Read => "read",
                    Scope::Operate => "operate",
                    Scope::Admin => "admin",
                };
                let request = TokenCreate {
                    name: args.name,
                    scope: scope.to_owned(),
                    ttl_s: args.ttl.map(|ttl| ttl.as_secs()),
                };
                let made = cx.client.create_token(&request).await?;
                cx.note("Keep this secret: it is shown only now. Use it as BERTH_TOKEN.");
                cx.print(&made.secret)
            }
            Self::List(args) => {
                output::list(cx, &args, async || Ok(cx.client.list_tokens().await?)).await
            }
            Self::Revoke { names } => {
                for name in names {
                    cx.client.revoke_token(&name).await?;
                    cx.print(&name)?;
                }
                Ok(())
            }
        }
    }
}
