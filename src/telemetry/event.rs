//! What happened to tidegate itself: one JSON object among the records, of kind `event`.

use std::sync::Arc;
use std::time::SystemTime;

/// Fields that do not apply are left out.
#[derive(Clone, Debug)]
pub struct Event {
    pub time: SystemTime,
    pub enforcer: Arc<str>,
    pub reason: Happened,
    /// More about it, for a person.
    pub detail: Option<String>,
    pub list: Option<Arc<str>>,
    /// The sink that the event is about.
    pub sink: Option<Arc<str>>,
    /// How often it happened since it was said last.
    pub count: Option<u64>,
    /// Of the configuration in force.
    pub generation: Option<u64>,
}

/// The word for `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The gateway serves.
    Started,
    /// It ends in order.
    Stopping,
    /// Another configuration is in force.
    Reloaded,
    /// The one before stays in force.
    ReloadRefused,
    ListReplaced,
    /// What a list became was not taken, or it could not be fetched.
    ListRefused,
    /// Rules or routes were damaged and are put back.
    RulesRestored,
    /// They could not be put back, and will be tried again.
    RulesDamaged,
    /// More came than a limit allows.
    Limit,
    /// This sink did not get so many records.
    RecordsDropped,
}

impl Happened {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "STARTED",
            Self::Stopping => "STOPPING",
            Self::Reloaded => "RELOADED",
            Self::ReloadRefused => "RELOAD_REFUSED",
            Self::ListReplaced => "LIST_REPLACED",
            Self::ListRefused => "LIST_REFUSED",
            Self::RulesRestored => "RULES_RESTORED",
            Self::RulesDamaged => "RULES_DAMAGED",
            Self::Limit => "LIMIT",
            Self::RecordsDropped => "RECORDS_DROPPED",
        }
    }
}

impl Event {
    pub fn new(enforcer: Arc<str>, reason: Happened) -> Self {
        Self {
            time: SystemTime::now(),
            enforcer,
            reason,
            detail: None,
            list: None,
            sink: None,
            count: None,
            generation: None,
        }
    }

    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    pub fn list(self, list: Arc<str>) -> Self {
        Self { list: Some(list), ..self }
    }

    pub fn count(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    pub fn generation(self, generation: u64) -> Self {
        Self { generation: Some(generation), ..self }
    }
}
