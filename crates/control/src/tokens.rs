//! Tokens for callers from other machines: 256 random bits, stored as a hash only.

use api::{ErrorCode, Problem, Token, TokenCreate, TokenCreated};
use model::{Name, Timestamp, record::TokenRecord, token::Scope};
use node::{clock, tables};
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use store::{CommitError, Txn};

use crate::{
    Control,
    error::{internal, wrong_field},
    wire,
};

/// What every secret begins with, so that scanners recognize a leaked one.
const MARK: &str = "berth_";

impl Control {
    /// The scope of a secret. The hash is compared, so the time this takes says nothing of the
    /// secret.
    pub(crate) async fn scope_of(&self, secret: &str) -> Result<Option<Scope>, Problem> {
        let sha256 = hash(secret);
        let all = tables::TOKENS.list(self.store()).await.map_err(internal)?;
        let now = clock::now();
        let found = all
            .entries
            .into_iter()
            .map(|entry| entry.value)
            .find(|record| {
                record.sha256 == sha256 && record.expires_at.is_none_or(|end| end > now)
            });
        Ok(found.map(|record| record.scope))
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<Token>, Problem> {
        let all = tables::TOKENS.list(self.store()).await.map_err(internal)?;
        Ok(all
            .entries
            .iter()
            .map(|entry| wire::token(&entry.value))
            .collect())
    }

    pub(crate) async fn new_token(&self, request: TokenCreate) -> Result<TokenCreated, Problem> {
        let name: Name = request
            .name
            .parse()
            .map_err(|error: model::name::InvalidName| wrong_field("name", error.to_string()))?;
        let scope: Scope =
            request
                .scope
                .parse()
                .map_err(|error: model::token::ParseScopeError| {
                    wrong_field("scope", error.to_string())
                })?;
        let mut random = [0; 32];
        rand::rngs::OsRng
            .try_fill_bytes(&mut random)
            .map_err(|error| {
                Problem::new(
                    ErrorCode::Internal,
                    format!("the kernel gives no randomness: {error}"),
                )
            })?;
        let secret = format!("{MARK}{}", hex::encode(random));
        let now = clock::now();
        let record = TokenRecord {
            name: name.clone(),
            sha256: hash(&secret),
            scope,
            created_at: now,
            expires_at: request.ttl_s.map(|ttl| {
                Timestamp::from_millis(now.as_millis().saturating_add(ttl.saturating_mul(1000)))
            }),
        };
        let mut txn = Txn::new();
        tables::TOKENS
            .insert(&mut txn, name.as_str(), &record)
            .map_err(internal)?;
        match self.store().commit(txn).await {
            Ok(_) => Ok(TokenCreated {
                token: wire::token(&record),
                secret,
            }),
            Err(CommitError::Conflict { .. }) => {
                let text = format!("there is already a token {name:?}");
                Err(Problem::new(ErrorCode::Conflict, text)
                    .hint("choose another name, or revoke it: berth token revoke"))
            }
            Err(error) => Err(internal(error)),
        }
    }

    pub(crate) async fn revoke(&self, name: &str) -> Result<(), Problem> {
        let found = match name.parse::<Name>() {
            Ok(name) => tables::TOKENS
                .get(self.store(), name.as_str())
                .await
                .map_err(internal)?,
            Err(_) => None,
        };
        let entry = found.ok_or_else(|| Problem::not_found("token", name))?;
        let mut txn = Txn::new();
        tables::TOKENS.delete(&mut txn, name, entry.revision);
        self.store().commit(txn).await.map(drop).map_err(internal)
    }
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}
