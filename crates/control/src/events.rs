//! What happened, for who listens: the newest events are kept for those who come late.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use api::Event;
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::sync::broadcast;

/// Events kept.
const KEPT: usize = 4096;

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    sequence: u64,
}

/// Events of this daemon's run. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    kept: Arc<Mutex<Kept>>,
    news: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Arc::default(),
            news: broadcast::channel(KEPT).0,
        }
    }
}

impl Events {
    /// Tells that something happened.
    pub(crate) fn tell(
        &self,
        kind: impl Into<String>,
        resource: impl Into<String>,
        message: impl Into<String>,
        attributes: impl IntoIterator<Item = (String, String)>,
    ) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sequence += 1;
        let event = Event {
            sequence: kept.sequence,
            at: node::clock::now().to_string(),
            kind: kind.into(),
            resource: resource.into(),
            message: message.into(),
            attributes: attributes.into_iter().collect(),
        };
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        // Sent under the lock, so that a listener sees them in order. Nobody listening is no
        // error.
        let _ = self.news.send(event);
    }

    /// Events after `since` (all new ones when `None`), and, with `follow`, those to come.
    pub(crate) fn listen(&self, since: Option<u64>, follow: bool) -> BoxStream<'static, Event> {
        let (old, news) = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let after = since.unwrap_or(if follow { kept.sequence } else { 0 });
            let old = kept
                .events
                .iter()
                .filter(|event| event.sequence > after)
                .cloned();
            (old.collect::<Vec<_>>(), self.news.subscribe())
        };
        let old = stream::iter(old);
        if !follow {
            return old.boxed();
        }
        // A listener that is too slow misses events; their sequence numbers show it.
        let news = stream::unfold(news, |mut news| async move {
            loop {
                match news.recv().await {
                    Ok(event) => return Some((event, news)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        old.chain(news).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_late_hears_what_is_kept_and_then_the_news() {
        let events = Events::default();
        for number in 0..3 {
            events.tell("test", format!("tests/{number}"), "", []);
        }
        let kept: Vec<_> = events.listen(None, false).collect().await;
        assert_eq!(kept.len(), 3);
        let mut heard = events.listen(Some(2), true);
        events.tell("test", "tests/3", "", []);
        assert_eq!(heard.next().await.unwrap().sequence, 3);
        assert_eq!(heard.next().await.unwrap().sequence, 4);
    }
}
