//! `tuning/notrack.nft` in a network of its own.

use std::path::Path;
use std::process::Command;

use crate::{stdout, tuning};

/// A firewall that has connections tracked, a server on the edge's port, and a client before and after the rules. Prints
/// how many connections were tracked at the start, after a client, after another with the rules, after one without them again.
const TRIAL: &str = r#"
set -euo pipefail
ip link set lo up
nft -f - <<<'table inet firewall { chain input { type filter hook input priority 0; ct state established accept; }; }'
/usr/bin/python3 -m http.server --bind 127.0.0.1 8080 >/dev/null 2>&1 &
trap "kill $!" EXIT
tracked() { cat /proc/sys/net/netfilter/nf_conntrack_count; }
# A listening socket is seen without connecting to it: that would be tracked.
for ((tries = 0; tries < 1000; tries++)); do
    ! grep -q ':1F90 00000000:0000 0A' /proc/net/tcp || break
    sleep 0.01
done
visit() { (exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3 >/dev/null); }
tracked
visit
tracked
nft --check --file "$1"
nft --file "$1"
nft --file "$1"
visit
tracked
nft delete table inet hawser
visit
tracked
"#;

#[test]
fn connections_to_the_edges_port_are_tracked_until_the_rules_are_loaded() {
    assert!(
        Path::new("/usr/sbin/nft").exists(),
        "nft is missing: apt-get install nftables, as .ci/run does"
    );
    let output = Command::new("unshare")
        .args(["--net", "bash", "-c", TRIAL, "bash"])
        .arg(tuning("notrack.nft"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output), "0\n1\n1\n2\n", "{output:?}");
}
