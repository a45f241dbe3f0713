"""The Grafana dashboards in deploy/grafana, as code.

`python -m mlxfleet.common.dashboards deploy/grafana` writes them. Nothing else imports this
package, because its dependency, grafana-foundation-sdk, is there for development only.
"""
