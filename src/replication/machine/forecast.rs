//! What becomes of a content when all that is planned for it succeeds: the planner
//! itself, asked again and again. Pure.

use super::outcome::{Outcome, apply};
use super::planner::{Content, Job, Moment, Plan, Verdict, passed_over, plan};
use crate::metadata::{ContentRecord, CopyState, VerifyMethod};
use crate::types::BackendId;

/// One piece of work that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// After so many rounds that come before it.
    pub round: usize,
    /// Where.
    pub place: BackendId,
    /// What.
    pub job: Job,
}

/// What is to come, as the places are now.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// In the order of their rounds.
    pub steps: Vec<Step>,
    /// The row after them.
    pub record: ContentRecord,
    /// Where it stands then: nothing to do, or stuck.
    pub end: Verdict,
    /// Why each place gets no copy, also those that have one by then.
    pub passed_over: Vec<(usize, &'static str)>,
}

/// Carries out every plan until nothing is left to do. Each copy that is made is read
/// back, as it is in the end.
#[must_use]
pub fn forecast(content: &Content<'_>, moment: &Moment<'_>) -> Forecast {
    let mut record = content.record.clone();
    let mut steps: Vec<Step> = Vec::new();
    let everywhere: Vec<BackendId> = moment.places.all.iter().map(|p| p.id.clone()).collect();
    // A place gets a copy, proves it and gives it up at most once each.
    let rounds = 3 * everywhere.len() + 1;
    let mut round = 0;
    loop {
        let now = Content { record: &record, ..*content };
        let end = plan(&now, moment);
        let jobs = match &end.plan {
            Plan::Act(jobs) if round < rounds => jobs.clone(),
            _ => {
                let passed_over = passed_over(&now, moment);
                return Forecast { steps, record, end, passed_over };
            }
        };
        for (place, job) in jobs {
            let outcome = match job {
                Job::Send | Job::Repair => {
                    Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack)
                }
                Job::Verify => Outcome::Verified(VerifyMethod::ReadBack),
                Job::Audit => Outcome::Audited,
                Job::Release => Outcome::Released(everywhere.clone()),
            };
            apply(content.root, &mut record, content.policy, (&place, &outcome), moment);
            steps.push(Step { round, place, job });
        }
        round += 1;
    }
}
