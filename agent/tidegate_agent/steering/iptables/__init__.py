"""The iptables back end: rules of table nat that match sets whose elements time out."""
