//! Operations as shown, and what may be asked of them.

use std::time::Duration;

use api::{ErrorCode, Operation, Problem};
use futures::{StreamExt, stream, stream::BoxStream};
use serde::Serialize;
use workflow::{CancelError, EngineError, OperationId, RetryError};

use crate::{
    Control,
    error::{internal, wrong_field},
    wire,
};

impl Control {
    pub(crate) async fn operation(&self, id: OperationId) -> Result<Operation, Problem> {
        let operation = self.workflow().get(id).await.map_err(from_workflow)?;
        Ok(wire::operation(&operation))
    }

    pub(crate) async fn operations(&self) -> Result<Vec<Operation>, Problem> {
        let all = self.workflow().list(None).await.map_err(from_workflow)?;
        Ok(all.iter().rev().map(wire::operation).collect())
    }

    pub(crate) async fn show_op(
        &self,
        id: &str,
        wait: Option<Duration>,
    ) -> Result<Operation, Problem> {
        let id = parse(id)?;
        if let Some(wait) = wait {
            // Whether it took longer than the caller waits shows in its state.
            let _ = tokio::time::timeout(wait, self.workflow().wait(id)).await;
        }
        self.operation(id).await
    }

    pub(crate) async fn watch_op(
        &self,
        id: &str,
    ) -> Result<BoxStream<'static, Operation>, Problem> {
        let changes = self
            .workflow()
            .subscribe(parse(id)?)
            .await
            .map_err(from_workflow)?;
        Ok(stream::unfold(changes, |mut changes| async move {
            let operation = changes.next().await?;
            Some((wire::operation(&operation), changes))
        })
        .boxed())
    }

    pub(crate) async fn cancel_op(&self, id: &str) -> Result<Operation, Problem> {
        let id = parse(id)?;
        self.workflow()
            .cancel(id)
            .await
            .map_err(|error| match error {
                error @ CancelError::Ended { .. } => {
                    Problem::new(ErrorCode::Conflict, error.to_string())
                }
                CancelError::Engine(error) => from_workflow(error),
            })?;
        self.operation(id).await
    }

    pub(crate) async fn retry_op(&self, id: &str) -> Result<Operation, Problem> {
        let id = parse(id)?;
        self.workflow()
            .retry(id)
            .await
            .map_err(|error| match error {
                RetryError::Engine(error) => from_workflow(error),
                error => Problem::new(ErrorCode::Conflict, error.to_string()),
            })?;
        self.operation(id).await
    }

    /// Logs and starts an operation that claims nothing.
    pub(crate) async fn launch(
        &self,
        kind: model::operation::OperationKind,
        input: &impl Serialize,
        resource: String,
    ) -> Result<Operation, Problem> {
        let planned = self
            .workflow()
            .plan(kind.as_str(), input, [resource])
            .map_err(internal)?;
        if let Err(error) = self.store().commit(planned.txn.clone()).await {
            self.workflow().discard(&planned);
            return Err(internal(error));
        }
        self.workflow()
            .launch(planned.operation.id)
            .await
            .map_err(from_workflow)?;
        self.operation(planned.operation.id).await
    }
}

fn parse(id: &str) -> Result<OperationId, Problem> {
    id.parse()
        .map_err(|error: workflow::ParseOperationIdError| wrong_field("id", error.to_string()))
}

fn from_workflow(error: EngineError) -> Problem {
    match error {
        error @ EngineError::NotFound { .. } => {
            Problem::new(ErrorCode::NotFound, error.to_string())
        }
        error => internal(error),
    }
}
