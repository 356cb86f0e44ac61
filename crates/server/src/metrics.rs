//! The server's own counters, written in the Prometheus text format after the service's. Counting
//! is a few relaxed atomics a request; nothing is locked and nothing grows.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use api::routes::ROUTES;

/// Statuses counted by themselves; others count as the last.
const STATUSES: [u16; 18] = [
    101, 200, 202, 204, 400, 401, 403, 404, 405, 409, 413, 415, 429, 501, 502, 504, 500, 0,
];
/// Upper bounds of the duration buckets, in microseconds.
const BUCKETS: [u64; 8] = [
    250, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000,
];

/// Counters of one route.
#[derive(Default)]
struct PerRoute {
    by_status: [AtomicU64; STATUSES.len()],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

/// All counters.
pub(crate) struct Metrics {
    /// One a route, and one for what is no route.
    routes: Vec<PerRoute>,
    /// Open connections.
    pub(crate) connections: AtomicU64,
    /// Open WebSockets.
    pub(crate) sockets: AtomicU64,
    /// Connections refused: too many, or no TLS.
    pub(crate) refused: AtomicU64,
    /// Handlers that panicked.
    pub(crate) panics: AtomicU64,
}

impl Metrics {
    /// All zero.
    pub(crate) fn new() -> Self {
        Self {
            routes: (0..=ROUTES.len()).map(|_| PerRoute::default()).collect(),
            connections: AtomicU64::default(),
            sockets: AtomicU64::default(),
            refused: AtomicU64::default(),
            panics: AtomicU64::default(),
        }
    }

    /// Counts a request: its place in the routes table, how it was answered, and how long it took
    /// until the answer began.
    pub(crate) fn count(&self, route: Option<usize>, status: u16, took: Duration) {
        let counters = &self.routes[route.unwrap_or(ROUTES.len())];
        let place = STATUSES.iter().position(|known| *known == status);
        counters.by_status[place.unwrap_or(STATUSES.len() - 1)].fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        counters.buckets[bucket].fetch_add(1, Relaxed);
        counters.micros.fetch_add(micros, Relaxed);
    }

    /// All of it as text, without routes that were never called.
    pub(crate) fn render(&self, out: &mut String) {
        let value = |counter: &AtomicU64| counter.load(Relaxed);
        for (name, kind, help, counter) in [
            (
                "berth_http_connections",
                "gauge",
                "Open connections.",
                &self.connections,
            ),
            (
                "berth_http_sockets",
                "gauge",
                "Open attach and exec streams.",
                &self.sockets,
            ),
            (
                "berth_http_refused_connections_total",
                "counter",
                "Connections refused: too many of one address, or no TLS.",
                &self.refused,
            ),
            (
                "berth_http_panics_total",
                "counter",
                "Requests that hit a fault.",
                &self.panics,
            ),
        ] {
            let value = value(counter);
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
        out.push_str(
            "# HELP berth_http_requests_total Requests by route and status.\n\
             # TYPE berth_http_requests_total counter\n",
        );
        for (route, counters) in self.named() {
            for (status, counter) in STATUSES.iter().zip(&counters.by_status) {
                if value(counter) == 0 {
                    continue;
                }
                let status = if *status == 0 {
                    "other".into()
                } else {
                    status.to_string()
                };
                let _ = writeln!(
                    out,
                    "berth_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {}",
                    value(counter)
                );
            }
        }
        self.render_durations(out);
    }

    fn render_durations(&self, out: &mut String) {
        let name = "berth_http_request_duration_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Time until the answer began, by route.\n# TYPE {name} histogram"
        );
        for (route, counters) in self.named() {
            let mut sum = 0;
            for (place, counter) in counters.buckets.iter().enumerate() {
                sum += counter.load(Relaxed);
                let bound = BUCKETS
                    .get(place)
                    .map_or("+Inf".to_owned(), |micros| seconds(*micros).to_string());
                let _ = writeln!(
                    out,
                    "{name}_bucket{{route=\"{route}\",le=\"{bound}\"}} {sum}"
                );
            }
            let total = seconds(counters.micros.load(Relaxed));
            let _ = writeln!(
                out,
                "{name}_sum{{route=\"{route}\"}} {total}\n{name}_count{{route=\"{route}\"}} {sum}"
            );
        }
    }

    /// Counters of routes that were called, with their ids.
    fn named(&self) -> impl Iterator<Item = (&'static str, &PerRoute)> {
        let ids = ROUTES.iter().map(|route| route.id).chain(["none"]);
        ids.zip(&self.routes)
            .filter(|(_, counters)| counters.by_status.iter().any(|it| it.load(Relaxed) > 0))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of 2^53 µs takes 285 years"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_status_and_time() {
        let metrics = Metrics::new();
        metrics.count(Some(0), 200, Duration::from_micros(250));
        metrics.count(Some(0), 200, Duration::from_millis(2));
        metrics.count(Some(0), 418, Duration::from_secs(60));
        metrics.count(None, 404, Duration::ZERO);
        let mut text = String::new();
        metrics.render(&mut text);
        for line in [
            "berth_http_requests_total{route=\"info\",status=\"200\"} 2",
            "berth_http_requests_total{route=\"info\",status=\"other\"} 1",
            "berth_http_requests_total{route=\"none\",status=\"404\"} 1",
            "berth_http_request_duration_seconds_bucket{route=\"info\",le=\"0.00025\"} 1",
            "berth_http_request_duration_seconds_bucket{route=\"info\",le=\"0.005\"} 2",
            "berth_http_request_duration_seconds_bucket{route=\"info\",le=\"+Inf\"} 3",
            "berth_http_request_duration_seconds_count{route=\"info\"} 3",
            "berth_http_request_duration_seconds_sum{route=\"info\"} 60.00225",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(!text.contains("route=\"events\""));
    }
}
