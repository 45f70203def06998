//! Metrics in the OpenMetrics text format, read from where they are at each scrape.
//!
//! Names and units by the conventions of Prometheus: `tidegate_`, base units, `_total` on what only grows.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::view::{Applied, View};
use crate::sys::process;
use crate::telemetry::Standing;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics at this moment.
pub fn text(view: &std::sync::Arc<View>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(view.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(std::sync::Arc<View>);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = &*self.0;
        let mut out = Out(encoder);
        let applied = view.applied.load();
        for (name, help, count) in view.telemetry.counters().described() {
            out.counter(&format!("tidegate_{name}"), help.trim(), None, [([], count)])?;
        }
        out.judgements(view)?;
        out.in_force(&applied)?;
        out.sinks(&view.telemetry.sinks())?;
        let limits = view.limits();
        let used = limits.iter().map(|own| ([("limit", own.what)], own.used as f64));
        out.gauge("tidegate_limit_used", "What is held of something that is limited", None, used)?;
        let most = limits.iter().map(|own| ([("limit", own.what)], own.most as f64));
        out.gauge("tidegate_limit_max", "The most that may be held", None, most)?;
        out.process(view)
    }
}

/// Writes one metric after another.
struct Out<'a>(DescriptorEncoder<'a>);

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Out<'_> {
    fn judgements(&mut self, view: &View) -> fmt::Result {
        let tally = view.telemetry.tally();
        let verdicts = tally.judgements().map(|([kind, verdict, reason], count)| {
            ([("kind", kind), ("verdict", verdict), ("reason", reason)], count)
        });
        let help = "Judgements, as records have them; held: let in for its name alone; monitored: blocked, had the \
                    Network been told to";
        self.counter("tidegate_verdicts", help, None, verdicts)?;
        let peeks =
            tally.peeks().map(|([protocol, outcome], count)| ([("type", protocol), ("outcome", outcome)], count));
        self.counter("tidegate_peeks", "What the beginnings of inspected flows told", None, peeks)
    }

    fn in_force(&mut self, applied: &Applied) -> fmt::Result {
        let build = [([("version", env!("CARGO_PKG_VERSION")), ("enforcer", &*applied.enforcer)], 1.0)];
        self.gauge("tidegate_build_info", "Which tidegate this is", None, build)?;
        let generation = [([], applied.generation as f64)];
        self.gauge(
            "tidegate_config_generation",
            "The configuration in force; one more with each change",
            None,
            generation,
        )?;
        let since = [([], unix(applied.since))];
        let help = "When the configuration in force was put there";
        self.gauge("tidegate_config_applied_timestamp", help, Some(&Unit::Seconds), since)?;
        self.gauge("tidegate_networks", "Networks that judge here", None, [([], applied.networks as f64)])?;
        let entries = applied.lists.iter().flat_map(|list| {
            let kinds = [("name", list.names), ("prefix", list.prefixes)];
            kinds.map(|(kind, count)| ([("list", &*list.name), ("kind", kind)], count as f64))
        });
        self.gauge("tidegate_list_entries", "Entries of a list", None, entries)?;
        let confirmed = applied.lists.iter().filter_map(|list| Some((&*list.name, list.confirmed()?)));
        let confirmed = confirmed.map(|(list, time)| ([("list", list)], unix(time)));
        let help = "When a list was last known to be what its source has";
        self.gauge("tidegate_list_confirmed_timestamp", help, Some(&Unit::Seconds), confirmed)?;
        let sets = applied.kernel_sets.iter().map(|(name, elements)| ([("set", name.as_str())], *elements as f64));
        self.gauge("tidegate_kernel_set_elements", "Elements of a kernel set that holds the policy's", None, sets)
    }

    fn sinks(&mut self, sinks: &[Standing]) -> fmt::Result {
        let of = |number: fn(&Standing) -> u64| sinks.iter().map(move |sink| ([("sink", &*sink.sink)], number(sink)));
        self.counter("tidegate_records_written", "Records that a sink has taken", None, of(|sink| sink.written))?;
        self.counter("tidegate_records_dropped", "Records that were lost to a sink", None, of(|sink| sink.dropped))?;
        let waiting = of(|sink| sink.waiting as u64).map(|(labels, count)| (labels, count as f64));
        self.gauge("tidegate_records_waiting", "Records that wait for a sink", None, waiting)?;
        let up = of(|sink| u64::from(!sink.failing)).map(|(labels, up)| (labels, up as f64));
        self.gauge("tidegate_sink_up", "1 while a sink takes records, 0 while it fails", None, up)
    }

    /// By the names that every exporter uses.
    fn process(&mut self, view: &View) -> fmt::Result {
        let facts = process::facts();
        let bytes = Some(&Unit::Bytes);
        self.gauge("process_resident_memory", "Octets in memory", bytes, [([], facts.resident as f64)])?;
        self.gauge("process_virtual_memory", "Octets of address space", bytes, [([], facts.virtual_memory as f64)])?;
        self.gauge("process_open_fds", "Open descriptors", None, [([], facts.descriptors as f64)])?;
        self.gauge("process_max_fds", "The most descriptors", None, [([], facts.most_descriptors as f64)])?;
        self.gauge("process_threads", "Threads", None, [([], facts.threads as f64)])?;
        let started = SystemTime::now().checked_sub(view.started.elapsed()).map_or(0.0, unix);
        self.gauge("process_start_time", "When it began", Some(&Unit::Seconds), [([], started)])?;
        let help = "Time on processors, in user space and in the kernel";
        self.0
            .encode_descriptor("process_cpu", help, Some(&Unit::Seconds), MetricType::Counter)
            .and_then(|metric| ConstCounter::new(facts.cpu.as_secs_f64()).encode(metric))
    }

    fn counter<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (Labels<'a, N>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        rows.into_iter().try_for_each(|(labels, count)| ConstCounter::new(count).encode(metric.encode_family(&labels)?))
    }

    fn gauge<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (Labels<'a, N>, f64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        rows.into_iter().try_for_each(|(labels, number)| ConstGauge::new(number).encode(metric.encode_family(&labels)?))
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
