//! Who is to be looked at: at most one task an instance, and never a lost kick.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::InstanceId;

/// What a look at an instance found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing to do until something changes.
    Idle,
    /// Look again after this long, or when something changes.
    After(Duration),
}

/// Instances with a task, and whether each was kicked again meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Kicks {
    running: Arc<Mutex<HashMap<InstanceId, bool>>>,
}

impl Kicks {
    /// Has `look` run for `id`: at once, or once more after the look that is under way.
    pub fn kick<F, W>(&self, id: InstanceId, look: F)
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = Next> + Send + 'static,
    {
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(again) = running.get_mut(&id) {
                *again = true;
                return;
            }
            running.insert(id, false);
        }
        let kicks = self.clone();
        tokio::spawn(async move {
            loop {
                let next = look().await;
                if !kicks.done(id) {
                    continue;
                }
                if let Next::After(pause) = next {
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        kicks.kick(id, look);
                    });
                }
                return;
            }
        });
    }

    /// Whether the task of `id` may end: nobody kicked it since its look began.
    fn done(&self, id: InstanceId) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get_mut(&id) {
            Some(again) if *again => {
                *again = false;
                false
            }
            _ => {
                running.remove(&id);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_kick_during_a_look_causes_one_more() {
        let kicks = Kicks::default();
        let id: InstanceId = "0192f0c1-7d3e-7aa2-9c41-5b6f2a10c3d4".parse().unwrap();
        let looks = Arc::new(AtomicUsize::new(0));
        let at_once = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let (looks, at_once) = (Arc::clone(&looks), Arc::clone(&at_once));
            kicks.kick(id, move || {
                let (looks, at_once) = (Arc::clone(&looks), Arc::clone(&at_once));
                async move {
                    assert_eq!(
                        at_once.fetch_add(1, Ordering::SeqCst),
                        0,
                        "one look at a time"
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    looks.fetch_add(1, Ordering::SeqCst);
                    Next::Idle
                }
            });
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(
            looks.load(Ordering::SeqCst),
            2,
            "two kicks during a look are one more look"
        );
    }
}
