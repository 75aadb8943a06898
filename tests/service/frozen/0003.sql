BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE artifacts (
	job_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	media_type TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 TEXT NOT NULL, 
	CONSTRAINT pk_artifacts PRIMARY KEY (job_id, name), 
	CONSTRAINT fk_artifacts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "artifacts" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za','student/weights.safetensors','application/octet-stream','jobs/1/w',12,'0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE audit (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	action TEXT NOT NULL, 
	object TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (id), 
	CONSTRAINT fk_audit_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "audit" VALUES('audit_01m80ky6qn8vp9feg0ev237710','default','test','jobs.create','job_01m80ky6qhhe2wwdv0n6pt24za','req_1',1795317242613000);
INSERT INTO "audit" VALUES('audit_01m80ky6rthjajpzrf6e6kz832','default','test','jobs.create','job_01m80ky6rthjajpzrf6e6kz831','req_1',1795317242650000);
INSERT INTO "audit" VALUES('audit_01m80ky6s1xdjacrhp8hx5t4ek','default','test','jobs.create','job_01m80ky6s1xdjacrhp8hx5t4ej','req_1',1795317242657000);
INSERT INTO "audit" VALUES('audit_01m80ky6s3va6gytdre0n95qya','alice','shell','tenants.create','alice','',1795317242660000);
INSERT INTO "audit" VALUES('audit_01m80ky6s5pya78et8awpa32mx','alice','shell','keys.create','key_01m80ky6s4b7y0rymc8hc4e9wc','',1795317242661000);
CREATE TABLE events (
	job_id TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	data JSON NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',1,'JOB_QUEUED','{}',1795317242614000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',2,'JOB_CLAIMED','{"claim": 1}',1795317242624000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',3,'PHASE_ENTERED','{"phase": "teacher"}',1795317242627000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',4,'PHASE_FINISHED','{"phase": "teacher", "result": {"name": "small_resnet"}}',1795317242630000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',5,'PHASE_ENTERED','{"phase": "survey"}',1795317242631000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',6,'PHASE_FINISHED','{"phase": "survey", "result": {"space": "s"}}',1795317242632000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',7,'TRIAL_PROPOSED','{"trial": "trial_01m80ky6ra5300933g7n8a8255", "number": 0, "choices": {"a": 1}, "cost": {"macs": 3}}',1795317242635000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',8,'TRIAL_STARTED','{"trial": "trial_01m80ky6ra5300933g7n8a8255", "number": 0, "rung": 0, "attempt": 1}',1795317242639000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',9,'TRIAL_SCORED','{"trial": "trial_01m80ky6ra5300933g7n8a8255", "number": 0, "rung": 0, "step": 10, "accuracy": 0.5, "kl": 0.1, "cached": false, "last": true}',1795317242641000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',10,'ARTIFACT_KEPT','{"name": "student/weights.safetensors", "bytes": 12, "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}',1795317242644000);
INSERT INTO "events" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',11,'JOB_SUCCEEDED','{"reason": ""}',1795317242649000);
INSERT INTO "events" VALUES('job_01m80ky6rthjajpzrf6e6kz831',1,'JOB_QUEUED','{}',1795317242651000);
INSERT INTO "events" VALUES('job_01m80ky6rthjajpzrf6e6kz831',2,'JOB_CLAIMED','{"claim": 1}',1795317242654000);
INSERT INTO "events" VALUES('job_01m80ky6rthjajpzrf6e6kz831',3,'PHASE_ENTERED','{"phase": "teacher"}',1795317242656000);
INSERT INTO "events" VALUES('job_01m80ky6s1xdjacrhp8hx5t4ej',1,'JOB_QUEUED','{}',1795317242658000);
CREATE TABLE "jobs" (
	id TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	spec JSON NOT NULL, 
	priority INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	started_at BIGINT, 
	ended_at BIGINT, 
	cancel_requested_at BIGINT, 
	phase TEXT, 
	owner TEXT, 
	token INTEGER NOT NULL, 
	claims INTEGER NOT NULL, 
	fruitless INTEGER NOT NULL, 
	lease_until BIGINT, 
	events INTEGER NOT NULL, 
	idempotency_key TEXT, 
	fingerprint TEXT, 
	tenant TEXT DEFAULT 'default' NOT NULL, 
	charged_at BIGINT, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT ck_jobs_lease CHECK (ended_at IS NULL OR lease_until IS NULL), 
	CONSTRAINT ck_jobs_end CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))), 
	CONSTRAINT ck_jobs_state CHECK (state IN ('QUEUED', 'PREPARING', 'RUNNING', 'FINALIZING', 'SUCCEEDED', 'FAILED', 'CANCELLED')), 
	CONSTRAINT fk_jobs_tenant FOREIGN KEY(tenant) REFERENCES tenants (name), 
	CONSTRAINT uq_jobs_tenant_idempotency_key UNIQUE (tenant, idempotency_key)
);
INSERT INTO "jobs" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za','SUCCEEDED','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795317242613000,1795317242624000,1795317242649000,NULL,'survey','driver',1,1,0,NULL,11,'nightly','f1','default',NULL);
INSERT INTO "jobs" VALUES('job_01m80ky6rthjajpzrf6e6kz831','PREPARING','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795317242650000,1795317242654000,NULL,NULL,'teacher','driver',1,1,1,2795317242654000,3,NULL,NULL,'default',1795317242654000);
INSERT INTO "jobs" VALUES('job_01m80ky6s1xdjacrhp8hx5t4ej','QUEUED','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795317242657000,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,1,NULL,NULL,'default',NULL);
CREATE TABLE keys (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	name TEXT NOT NULL, 
	scope TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT, 
	revoked_at BIGINT, 
	last_used_at BIGINT, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT fk_keys_tenant FOREIGN KEY(tenant) REFERENCES tenants (name), 
	CONSTRAINT uq_keys_digest UNIQUE (digest), 
	CONSTRAINT ck_keys_scope CHECK (scope IN ('read', 'submit', 'admin'))
);
INSERT INTO "keys" VALUES('key_01m80ky6s4b7y0rymc8hc4e9wc','alice','notebook','submit','25e02f8271497ded9dac9340a5fb941a43c62090ffcb0cd8206741d8834496ab',1795317242661000,NULL,NULL,NULL);
CREATE TABLE phases (
	job_id TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	started_at BIGINT NOT NULL, 
	ended_at BIGINT, 
	result JSON, 
	CONSTRAINT pk_phases PRIMARY KEY (job_id, phase), 
	CONSTRAINT fk_phases_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT ck_phases_result CHECK ((ended_at IS NULL) = (result IS NULL))
);
INSERT INTO "phases" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za','teacher',1795317242626000,1795317242629000,'{"name": "small_resnet"}');
INSERT INTO "phases" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za','survey',1795317242631000,1795317242632000,'{"space": "s"}');
INSERT INTO "phases" VALUES('job_01m80ky6rthjajpzrf6e6kz831','teacher',1795317242655000,NULL,NULL);
CREATE TABLE scores (
	trial_id TEXT NOT NULL, 
	rung INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	accuracy FLOAT NOT NULL, 
	kl FLOAT NOT NULL, 
	seconds FLOAT NOT NULL, 
	at BIGINT NOT NULL, cached BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_scores PRIMARY KEY (trial_id, rung), 
	CONSTRAINT fk_scores_trial_id FOREIGN KEY(trial_id) REFERENCES trials (id)
);
INSERT INTO "scores" VALUES('trial_01m80ky6ra5300933g7n8a8255',0,10,0.5,0.1,1.0,1795317242640000,0);
CREATE TABLE tenants (
	name TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	served_at BIGINT, 
	queued_jobs BIGINT, 
	concurrent_trials BIGINT, 
	cpu_seconds_per_day BIGINT, 
	gpu_seconds_per_day BIGINT, 
	stored_bytes BIGINT, 
	CONSTRAINT pk_tenants PRIMARY KEY (name)
);
INSERT INTO "tenants" VALUES('default',1795317242593000,1795317242654000,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tenants" VALUES('alice',1795317242659000,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE trials (
	id TEXT NOT NULL, 
	job_id TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	choices JSON NOT NULL, 
	origin JSON NOT NULL, 
	cost JSON NOT NULL, 
	extra JSON, 
	state TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	reason TEXT NOT NULL, 
	CONSTRAINT pk_trials PRIMARY KEY (id), 
	CONSTRAINT fk_trials_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_trials_job_id_number UNIQUE (job_id, number), 
	CONSTRAINT uq_trials_job_id_key UNIQUE (job_id, "key"), 
	CONSTRAINT ck_trials_state CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'STOPPED', 'FAILED', 'CANCELLED'))
);
INSERT INTO "trials" VALUES('trial_01m80ky6ra5300933g7n8a8255','job_01m80ky6qhhe2wwdv0n6pt24za',0,'key-a','{"a": 1}','{"a": 2}','{"macs": 3}',NULL,'COMPLETED',0,'');
CREATE TABLE usage (
	job_id TEXT NOT NULL, 
	day INTEGER NOT NULL, 
	cpu_seconds FLOAT NOT NULL, 
	gpu_seconds FLOAT NOT NULL, 
	CONSTRAINT pk_usage PRIMARY KEY (job_id, day), 
	CONSTRAINT fk_usage_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "usage" VALUES('job_01m80ky6qhhe2wwdv0n6pt24za',20779,0.044,0.0);
CREATE INDEX ix_keys_of_tenant ON keys (tenant, id);
CREATE INDEX ix_jobs_newest ON jobs (created_at, id);
CREATE INDEX ix_jobs_open ON jobs (priority, created_at, id) WHERE ended_at IS NULL;
CREATE INDEX ix_jobs_of_tenant ON jobs (tenant, created_at, id);
CREATE INDEX ix_jobs_turn ON jobs (tenant, priority, created_at, id) WHERE ended_at IS NULL;
CREATE INDEX ix_jobs_leased ON jobs (tenant) WHERE lease_until IS NOT NULL;
CREATE INDEX ix_usage_day ON usage (day);
CREATE INDEX ix_audit_newest ON audit (tenant, at, id);
CREATE TRIGGER audit_stays_update BEFORE update ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
CREATE TRIGGER audit_stays_delete BEFORE delete ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
COMMIT;
