//! Instances: what may be asked of them.

mod change;
mod create;
mod delete;
mod files;
mod leaving;
mod power;
mod streams;
mod usage;
mod wait;

use std::sync::Arc;

use api::{ErrorCode, Problem, service::InstanceFilter};
use model::{InstanceId, InstanceStatus, record::InstanceRecord};
use node::tables;
use store::Entry;

use crate::{Control, error::internal, wire};

pub(crate) use leaving::Leaving;

/// Shortest beginning of an id that stands for it.
const SHORTEST_PREFIX: usize = 4;

impl Control {
    /// The record of an instance by name, id, or the unique beginning of an id.
    pub(crate) async fn find(&self, name: &str) -> Result<Entry<InstanceRecord>, Problem> {
        if name.len() <= 63
            && let Ok(Some(id)) = tables::NAMES.get(self.store(), name).await
            && let Some(entry) = tables::INSTANCES
                .get(self.store(), &id.value)
                .await
                .map_err(internal)?
        {
            return Ok(entry);
        }
        if let Some(id) = self.id_beginning(name).await?
            && let Some(entry) = self.record(id).await?
        {
            return Ok(entry);
        }
        Err(Problem::not_found("instance", name).hint("berth list shows what there is"))
    }

    async fn id_beginning(&self, text: &str) -> Result<Option<InstanceId>, Problem> {
        if let Ok(id) = text.parse() {
            return Ok(Some(id));
        }
        let hex = text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !hex || text.len() < SHORTEST_PREFIX || text.len() > 36 {
            return Ok(None);
        }
        let prefix = tables::INSTANCES.key(text);
        let page = self
            .store()
            .range(store::Range::prefix(prefix).limit(2))
            .await;
        let page = page.map_err(internal)?;
        match page.records.as_slice() {
            [one] => Ok(one.key[tables::INSTANCES.prefix().len()..].parse().ok()),
            [] => Ok(None),
            _ => Err(Problem::new(
                ErrorCode::Invalid,
                format!("{text:?} is the beginning of several ids"),
            )
            .hint("give more of the id, or the name")),
        }
    }

    pub(crate) async fn record(
        &self,
        id: InstanceId,
    ) -> Result<Option<Entry<InstanceRecord>>, Problem> {
        tables::INSTANCES
            .get(self.store(), &id.to_string())
            .await
            .map_err(internal)
    }

    pub(crate) async fn status(&self, id: InstanceId) -> Result<Option<InstanceStatus>, Problem> {
        let entry = tables::STATUSES
            .get(self.store(), &id.to_string())
            .await
            .map_err(internal)?;
        Ok(entry.map(|entry| entry.value))
    }

    /// One instance as shown.
    pub(crate) async fn detail(
        &self,
        record: &InstanceRecord,
    ) -> Result<api::InstanceDetail, Problem> {
        let status = self.status(record.id).await?;
        let directory = self.node().parts().paths.instance(record.id);
        Ok(wire::detail(record, status.as_ref(), &directory))
    }

    /// Every record with its status, by id and so by age.
    pub(crate) async fn all(
        &self,
    ) -> Result<Vec<(Arc<InstanceRecord>, Option<Arc<InstanceStatus>>)>, Problem> {
        let records = self
            .inner
            .records
            .list(self.store())
            .await
            .map_err(internal)?;
        let statuses = self
            .inner
            .statuses
            .list(self.store())
            .await
            .map_err(internal)?;
        let mut statuses = statuses.into_iter().peekable();
        let mut all = Vec::with_capacity(records.len());
        // Both are in the order of their ids.
        for (id, record) in records {
            while statuses.next_if(|(other, _)| *other < id).is_some() {}
            let status = statuses
                .next_if(|(other, _)| *other == id)
                .map(|(_, status)| status);
            all.push((record, status));
        }
        Ok(all)
    }

    pub(crate) async fn list(
        &self,
        filter: &InstanceFilter,
    ) -> Result<Vec<api::Instance>, Problem> {
        let label = filter
            .label
            .as_deref()
            .map(|label| match label.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (label, None),
            });
        let wanted = |record: &InstanceRecord| {
            label.is_none_or(|(key, value)| {
                let found = record.spec.labels.get(key);
                found.is_some_and(|found| value.is_none_or(|value| found == value))
            })
        };
        let mut list: Vec<api::Instance> = self
            .all()
            .await?
            .iter()
            .filter(|(record, _)| wanted(record) && !self.inner.leaving.hides(record.id))
            .map(|(record, status)| wire::instance(record, status.as_deref()))
            .filter(|shown| {
                filter
                    .status
                    .as_ref()
                    .is_none_or(|status| shown.status == *status)
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }
}
