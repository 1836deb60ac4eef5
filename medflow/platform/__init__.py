"""The only room that knows ZenML and MLflow.

Importing it sets the environment variables that both read at their own import (`environment`).
"""

from medflow.platform import environment

environment.prepare()
