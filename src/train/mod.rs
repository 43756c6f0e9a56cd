//! The fine-tune: one visible loop, its state on disk, its log.

mod adapters;
mod base;
mod content;
mod divergence;
mod earlier;
mod evaluate;
mod events;
mod fit;
mod head;
mod late;
mod log;
mod loss;
mod memory;
mod metrics;
mod need;
mod output;
mod predict;
mod report;
mod resume;
mod rows;
mod run;
mod saved;
mod schedules;
mod settings;
mod state;
mod trained;

pub use adapters::{AdapterFlags, InitType};
pub use base::{Base, Origin};
pub use content::Content;
pub use divergence::{divergence, predictions};
pub use evaluate::{Evaluation, Metrics};
pub use fit::{Outcome, fit};
pub use head::{Head, Meaning, labels_for, saved_labels, unnamed};
pub use log::{Log, StepLog};
pub use loss::{batch_loss, mean_loss};
pub use memory::Memory;
pub use metrics::{Confusion, mae, r2};
pub use need::Sketch;
pub use output::{abandon, check_outputs};
pub use predict::{Prediction, askable, exact_match, predict};
pub use rows::Rows;
pub use run::Run;
pub use saved::{Saved, latest_checkpoint};
pub use settings::{
    ComputeDtype, OptimizerType, QuantType, SchedulerType, Settings, Switch, Task,
    When,
};
pub use state::steps_per_epoch;
pub use trained::Trained;
