//! How many GPUs the sessions of a fleet need, for whatever starts and stops servers. It is arithmetic.

use fastvideo_proto::api::router::FleetDemand;
use fastvideo_proto::fleet::Report;

/// Returns what the servers that report and the line say. `headroom_gpus` is the number of GPUs to be had beyond what is
/// needed.
pub(super) fn demand(reports: &[Report], waiting: usize, headroom_gpus: usize) -> FleetDemand {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    let is_open = |report: &Report| report.ready && !report.draining;
    let open = reports.iter().filter(|report| is_open(report));
    let (sessions, places) = (sum(|report| report.sessions), sum(|report| report.places));
    let serving = sum(|report| report.gpus.ready);
    // A GPU serves places / serving sessions; as long as none serves, one at a time is assumed.
    let (places_of, serving_of) = match places {
        0 => (1, 1),
        places => (places, serving.max(1)),
    };
    let needed = (sessions + waiting).saturating_mul(serving_of);
    FleetDemand {
        waiting,
        sessions,
        places,
        free: open.map(|report| report.free).sum(),
        gpus: sum(|report| report.gpus.total),
        wanted_gpus: needed.div_ceil(places_of) + headroom_gpus,
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::fleet::Gpus;

    use super::*;

    /// A server with GPUs that serve so many sessions each, and have so many.
    fn server(gpus: usize, places_per_gpu: usize, sessions: usize) -> Report {
        Report {
            ready: gpus > 0,
            places: gpus * places_per_gpu,
            free: gpus * places_per_gpu - sessions,
            sessions,
            gpus: Gpus {
                total: gpus,
                ready: gpus,
                starting: 0,
            },
            ..Report::default()
        }
    }

    #[test]
    fn gpus_are_wanted_for_those_who_are_served_and_those_who_wait() {
        let check = |reports: &[Report], waiting, headroom, expected| {
            let demand = demand(reports, waiting, headroom);
            assert_eq!(demand.wanted_gpus, expected, "{reports:?} {waiting}");
        };
        check(&[], 0, 0, 0);
        check(&[], 3, 0, 3);
        check(&[], 0, 2, 2);
        check(&[server(2, 1, 2), server(2, 1, 0)], 0, 0, 2);
        check(&[server(2, 1, 2), server(2, 1, 2)], 5, 1, 10);
        check(&[server(2, 4, 8)], 1, 0, 3);
        check(&[server(2, 4, 8)], 4, 0, 3);
        check(&[server(2, 4, 8)], 5, 0, 4);
        check(&[server(2, 4, 8)], 0, 3, 5);
        // One of them is still loading its model.
        let mut half = server(1, 4, 4);
        half.gpus.total = 2;
        check(&[half], 4, 0, 2);
    }

    #[test]
    fn places_of_servers_that_leave_are_not_free() {
        let mut leaving = server(2, 1, 1);
        leaving.draining = true;
        let demand = demand(&[server(2, 1, 1), leaving], 0, 0);
        assert_eq!((demand.places, demand.free, demand.gpus), (4, 1, 4));
    }
}
